"""N-grams of a sentence and how often each occurs, for the metrics that count them."""

from collections import Counter
from collections.abc import Sequence

LONGEST = 4
"""BLEU and CIDEr-D look at n-grams of one to four tokens."""

Ngram = tuple[str, ...]
Ngrams = Counter[Ngram]


def ngrams(tokens: Sequence[str], longest: int = LONGEST) -> Ngrams:
    """How often each n-gram of 1 to `longest` tokens occurs; its length is its n."""
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, longest + 1)
        for start in range(len(tokens) - n + 1)
    )
