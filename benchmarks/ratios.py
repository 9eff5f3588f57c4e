"""Medians, ranges and ratios of interleaved measurements, and when no verdict is due."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .rounds import Row

SAME_WITHIN = 0.10
"""Two arms that are the same may differ by this much; beyond it nothing is concluded."""


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of some numbers."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.middle >= 100 else 1 if self.middle >= 10 else 2
        low, middle, high = (f"{n:,.{digits}f}" for n in (self.low, self.middle, self.high))
        return f"{middle} [{low}-{high}]"


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of some numbers, None without any."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def values(rows: Sequence[Row], arm: str, name: str) -> dict[int, float]:
    """A measured quantity of an arm by round; failed measurements are left out."""
    return {r["round"]: float(r[name]) for r in rows if r["arm"] == arm and name in r}


def ratio(rows: Sequence[Row], over: str, under: str, name: str) -> Spread | None:
    """`over` / `under` of a quantity, paired by round."""
    top, bottom = values(rows, over, name), values(rows, under, name)
    return spread([top[number] / bottom[number] for number in sorted(top) if bottom.get(number)])


def trusted(rows: Sequence[Row], arm: str, again: str, name: str) -> tuple[bool, Spread | None]:
    """Whether the same arm, run twice a round, came out the same; and by what ratio."""
    found = ratio(rows, again, arm, name)
    return found is not None and abs(found.middle - 1) <= SAME_WITHIN, found
