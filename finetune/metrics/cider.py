"""CIDEr-D (Vedantam et al., CVPR 2015), with the numbers of coco-caption.

A sentence is four vectors of its n-gram counts, n = 1 to 4, each weighted by log(images / images
whose references have the n-gram). The score is the mean over n and over the references of
10 * exp(-(difference of lengths)^2 / 72) * <min(c, r), r> / (|c| |r|).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import DataError
from .ngrams import LONGEST, Ngram, Ngrams, ngrams

_SIGMA = 6.0
_SCALE = 10.0


@dataclass(frozen=True)
class CiderD:
    """The n-gram weights of a set of references: those of the test, or, as a reward, of training.

    An image alone has no weights (log 1 = 0) and scores 0: take the weights from many.
    """

    images: int
    having: Counter[Ngram]
    """Of how many images some reference has this n-gram."""

    def score(self, candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """CIDEr-D of one tokenised candidate, 0 to 10.

        Raises:
            DataError: there is no reference.
        """
        if not references:
            raise DataError("CIDEr-D: a candidate has no reference. Give it at least one.")
        mine = self._vector(candidate)
        return _SCALE * sum(_like(mine, self._vector(one)) for one in references) / len(references)

    def _vector(self, tokens: Sequence[str]) -> "_Vector":
        counts = ngrams(tokens)
        norms, weights = [0.0] * LONGEST, dict[Ngram, float]()
        for gram, count in counts.items():
            weights[gram] = count * math.log(self.images / max(1, self.having[gram]))
            norms[len(gram) - 1] += weights[gram] ** 2
        return _Vector(weights, [math.sqrt(norm) for norm in norms], max(0, len(tokens) - 1))


@dataclass(frozen=True)
class _Vector:
    weights: dict[Ngram, float]
    norms: list[float]
    length: int
    """In pairs of tokens, as coco-caption counts; 0 for a sentence of one token and for none."""


def weights(references: Iterable[Sequence[Sequence[str]]]) -> CiderD:
    """The weights of the tokenised references of many images."""
    images, having = 0, Ngrams()
    for sentences in references:
        images += 1
        having.update({gram for sentence in sentences for gram in ngrams(sentence)})
    return CiderD(images, having)


def cider_d(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, ...]:
    """CIDEr-D of each tokenised candidate, weighted by these references; a corpus scores the mean.

    Args:
        candidates: tokens of one sentence an image.
        references: tokens of one or more sentences an image, in the same order.

    Raises:
        DataError: not one candidate for each image.
    """
    if len(candidates) != len(references):
        raise DataError(
            f"CIDEr-D: {len(candidates)} candidates and {len(references)} lists of references. "
            "Give one candidate an image."
        )
    known = weights(references)
    return tuple(known.score(*pair) for pair in zip(candidates, references, strict=True))


def _like(mine: _Vector, theirs: _Vector) -> float:
    dots = [0.0] * LONGEST
    for gram, weight in mine.weights.items():
        other = theirs.weights.get(gram, 0.0)
        dots[len(gram) - 1] += min(weight, other) * other  # clipped: saying it twice is no gain
    norms = (a * b for a, b in zip(mine.norms, theirs.norms, strict=True))
    cosines = (dot / norm for dot, norm in zip(dots, norms, strict=True) if norm)
    penalty = math.exp(-((mine.length - theirs.length) ** 2) / (2 * _SIGMA**2))
    return penalty * sum(cosines) / LONGEST
