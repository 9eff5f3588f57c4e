"""All caption metrics of texts at once: the table that a captioning paper prints."""

from collections.abc import Sequence

from .bleu import bleu
from .cider import cider_d
from .java import extra
from .ptb import tokenize
from .rouge import rouge_l


def score_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], extras: Sequence[str] = ()
) -> dict[str, float]:
    """`bleu_1` to `bleu_4` and `rouge_l` (0 to 1) and `cider_d` (0 to 10) of a whole test.

    Args:
        captions: one an image.
        references: one or more texts an image, in the same order.
        extras: `meteor`, `spice`; see `java`.

    Raises:
        DataError: no caption, or not one for each image, or an image without references.
    """
    ours = [tokenize(caption) for caption in captions]
    theirs = [[tokenize(text) for text in texts] for texts in references]
    found = {f"bleu_{n}": value for n, value in enumerate(bleu(ours, theirs).corpus, 1)}
    rouge = [rouge_l(*pair) for pair in zip(ours, theirs, strict=True)]
    cider = cider_d(ours, theirs)
    found |= {"rouge_l": sum(rouge) / len(rouge), "cider_d": sum(cider) / len(cider)}
    return {**found, **{name: extra(name)(ours, theirs) for name in extras}}
