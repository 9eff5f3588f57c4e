"""ROUGE-L (Lin, 2004), with the numbers of coco-caption.

F = (1 + b^2) P R / (R + b^2 P) with b = 1.2, where P and R are the longest common subsequence as
a share of the candidate's and of the reference's tokens, each the best over the references.
"""

from collections.abc import Sequence

from ...errors import DataError

_BETA2 = 1.2**2
_NOTHING = ("",)  # coco-caption counts an empty sentence as one empty token


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one tokenised candidate, 0 to 1; a corpus scores the mean.

    Raises:
        DataError: there is no reference.
    """
    if not references:
        raise DataError("ROUGE-L: a candidate has no reference. Give it at least one.")
    candidate = candidate or _NOTHING
    common = [(longest_common(candidate, one or _NOTHING), len(one) or 1) for one in references]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / size for length, size in common)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA2) * precision * recall / (recall + _BETA2 * precision)


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest subsequence that both have; its tokens need not be neighbours."""
    row = [0] * (len(right) + 1)
    for token in left:
        before = 0  # the cell above and to the left
        for place, other in enumerate(right, 1):
            above = row[place]
            row[place] = before + 1 if token == other else max(above, row[place - 1])
            before = above
    return row[-1]
