"""BLEU-1 to BLEU-4 (Papineni et al., ACL 2002), with the numbers of coco-caption.

BLEU-n = min(1, exp(1 - r/c)) * (p_1 * ... * p_n) ** (1/n), where p_k is the share of the
candidate's k-grams that a reference has too (clipped), c the candidate's length and r the length of
the reference nearest to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import DataError
from .ngrams import LONGEST, Ngrams, ngrams

# Of coco-caption's BLEU: nothing divides by zero, and no match at all is still a number.
_SMALL, _TINY = 1e-9, 1e-15


@dataclass(frozen=True)
class Bleu:
    """BLEU-1, -2, -3, -4, in this order; 0 to 1."""

    corpus: tuple[float, ...]
    """Of all candidates together: the counts are added up before they are divided."""
    each: tuple[tuple[float, ...], ...]
    """Of each candidate alone."""


@dataclass(frozen=True)
class _Counts:
    """What BLEU knows of one candidate, or of all."""

    length: int
    reference: int
    guessed: tuple[int, ...]
    right: tuple[int, ...]


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Bleu:
    """BLEU of tokenised candidates.

    Args:
        candidates: tokens of one sentence an image.
        references: tokens of one or more sentences an image, in the same order.

    Raises:
        DataError: no candidate at all, or one without a reference.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise DataError(
            f"BLEU: {len(candidates)} candidates and {len(references)} lists of references. Give "
            "each candidate at least one reference."
        )
    found = [_count(*pair) for pair in zip(candidates, references, strict=True)]
    whole = _Counts(
        length=sum(one.length for one in found),
        reference=sum(one.reference for one in found),
        guessed=tuple(map(sum, zip(*(one.guessed for one in found), strict=True))),
        right=tuple(map(sum, zip(*(one.right for one in found), strict=True))),
    )
    return Bleu(_score(whole), tuple(_score(one) for one in found))


def _count(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> _Counts:
    most = Ngrams()
    for reference in references:
        most |= ngrams(reference)  # the maximum of both counts
    right = [0] * LONGEST
    for gram, count in ngrams(candidate).items():
        right[len(gram) - 1] += min(count, most[gram])
    length = len(candidate)
    return _Counts(
        length=length,
        reference=min((abs(len(one) - length), len(one)) for one in references)[1],
        guessed=tuple(max(0, length - n + 1) for n in range(1, LONGEST + 1)),
        right=tuple(right),
    )


def _score(counts: _Counts) -> tuple[float, ...]:
    ratio = (counts.length + _TINY) / (counts.reference + _SMALL)
    brevity = min(1.0, math.exp(1 - 1 / ratio)) if ratio > 0.001 else 0.0  # exp(-1000) is 0
    product, scores = 1.0, list[float]()
    for n, (right, guessed) in enumerate(zip(counts.right, counts.guessed, strict=True), 1):
        product *= (right + _TINY) / (guessed + _SMALL)
        scores.append(brevity * product ** (1 / n))
    return tuple(scores)
