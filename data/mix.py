"""Which source each row of the endless stream comes from: an even interleaving by weight."""

from collections.abc import Sequence

import numpy as np

CYCLE = 4096
"""Rows after which the pattern repeats; shares are exact to one in as many."""


class Mix:
    """Rows are numbered from 0; how many of a source come before any row is known at once."""

    def __init__(self, weights: Sequence[float]) -> None:
        slots = _slots(np.asarray(weights, dtype=float))
        source = np.repeat(np.arange(len(slots)), slots)
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in slots])
        self.pattern = source[np.lexsort((source, places))]
        self.slots = slots
        ones = self.pattern[:, None] == np.arange(len(slots))
        self._before = np.concatenate([np.zeros((1, len(slots)), int), np.cumsum(ones, axis=0)])

    def before(self, row: int) -> np.ndarray:
        """How many rows of each source come before a row."""
        cycles, place = divmod(row, len(self.pattern))
        return cycles * self.slots + self._before[place]

    def split(self, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, which of that source's visits) of rows."""
        cycles, places = np.divmod(rows_R, len(self.pattern))
        source = self.pattern[places]
        return source, cycles * self.slots[source] + self._before[places, source]


def _slots(weights: np.ndarray) -> np.ndarray:
    """Rows of a cycle by source: largest remainders, and at least one each."""
    if len(weights) == 1:
        return np.array([1])
    shares = weights / weights.sum() * CYCLE
    slots = np.maximum(1, np.floor(shares).astype(int))
    for source in np.argsort(slots - shares, kind="stable")[: max(0, CYCLE - slots.sum())]:
        slots[source] += 1
    return slots
