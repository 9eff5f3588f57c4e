"""The goals of the stream, each a ratio of arms that were measured in turns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import ratios
from ..rounds import Row
from .parts import AGAIN, BARE, OURS, PARTS, SAME


@dataclass(frozen=True)
class Goal:
    """`over` / `under` of a quantity, and what it must reach."""

    part: str
    says: str
    over: str
    under: tuple[str, ...]
    """Arms to compare with; the ratio counts that is worst for us."""
    name: str
    least: float | None = None
    most: float | None = None

    def verdict(self, rows: Sequence[Row]) -> tuple[str, str]:
        """(what was measured, verdict), both as text; none where the machine was too noisy."""
        mine = [row for row in rows if row["part"] == self.part]
        worst = self._worst(mine)
        if worst is None:
            return "", "not measured"
        control = self._control(mine)
        if control:
            return str(worst), control
        short = self.least is not None and worst.middle < self.least
        long = self.most is not None and worst.middle > self.most
        return str(worst), "missed" if short or long else "reached"

    def _worst(self, rows: Sequence[Row]) -> ratios.Spread | None:
        if not self.under:
            return ratios.spread(list(ratios.values(rows, self.over, self.name).values()))
        found = [ratios.ratio(rows, self.over, arm, self.name) for arm in self.under]
        pick = min if self.least is not None else max
        return pick((r for r in found if r), key=lambda r: r.middle, default=None)

    def _control(self, rows: Sequence[Row]) -> str:
        """Why there is no verdict: the same arm, run twice a round, came out differently."""
        again = next((arm for arm in PARTS[self.part].names if arm.endswith("again")), "")
        if not again:
            return ""
        same, found = ratios.trusted(rows, again.removesuffix(" again"), again, self.name)
        return "" if same else f"no verdict: the same arm twice gave {found}"


_LOOSE = "torch loose files"
_PEERS = tuple(name for name in PARTS["raw"].names if name not in (OURS, AGAIN, _LOOSE))
_WEB = tuple(name for name in _PEERS if name.startswith("webdataset"))
_ALL = (*_PEERS, _LOOSE)
_SAME = tuple(name for name in PARTS["decoded"].names if name.endswith(SAME))
_FIRST, _MEMORY = "first_after_imports_s", "resident_mib"
_CPU = "cpu_s_per_gb"
_BAD, _WELL = "proxy with 1 % faults", "proxy without faults"


def _ratio(part: str, says: str, over: str, under: str | tuple[str, ...], name: str) -> Goal:
    return Goal(part, says, over, (under,) if isinstance(under, str) else under, name)


def _least(least: float, goal: Goal) -> Goal:
    return replace(goal, least=least)


def _most(most: float, goal: Goal) -> Goal:
    return replace(goal, most=most)


GOALS = (
    _least(2.5, _ratio("raw", "raw samples/s over webdataset", OURS, _WEB, "rate")),
    _least(1.0, _ratio("raw", "raw samples/s over every peer on S3", OURS, _PEERS, "rate")),
    _least(1.0, _ratio("raw", "raw samples/s over local loose files", OURS, _LOOSE, "rate")),
    _most(0.4, _ratio("raw", "CPU a sample of webdataset's", OURS, _WEB, "cpu_ms")),
    _least(2.0, _ratio("decoded", "decoded/s over every peer as shipped", OURS, _ALL, "rate")),
    _least(2.0, _ratio("decoded", "decoded/s over every peer, our decoder", OURS, _SAME, "rate")),
    _most(0.5, _ratio("decoded", "CPU a sample of every peer's as shipped", OURS, _ALL, "cpu_ms")),
    _most(
        0.5, _ratio("decoded", "CPU a sample of every peer's, our decoder", OURS, _SAME, "cpu_ms")
    ),
    _most(1.0, _ratio("decoded", "memory of every peer's", OURS, _ALL, "peak_mib")),
    _least(0.8, _ratio("decoded", "share of the decode limit", OURS, "limit: full", "rate")),
    _least(0.8, _ratio("decoded", "the same in CPU a sample", "limit: full", OURS, "cpu_ms")),
    _most(1.5, _ratio("decoded", "s from process start to the first batch", OURS, (), "first_s")),
    _least(5.0, _ratio("large", "512 to 256 px over webdataset", OURS, _WEB, "rate")),
    _least(3.0, _ratio("large", "512 to 256 px over every peer", OURS, _ALL, "rate")),
    _most(0.2, _ratio("large", "CPU a sample of webdataset's", OURS, _WEB, "cpu_ms")),
    _most(0.33, _ratio("large", "CPU a sample of every peer's", OURS, _ALL, "cpu_ms")),
    _least(0.8, _ratio("large", "share of the scaled decode limit", OURS, "limit: scaled", "rate")),
    _most(1.15, _ratio("fetch", "CPU/GB of a local read's", "fetch file", "limit: read", _CPU)),
    _most(1.3, _ratio("fetch", "CPU/GB of a GET loop's", "fetch S3", "limit: ranged GET", _CPU)),
    _least(0.9, _ratio("faults", "rate with 1 % faults over none", _BAD, _WELL, "rate")),
    *(
        _most(1.2, _ratio("growth", f"{says}, {over} over {under}", over, under, name))
        for says, name in (("first batch", _FIRST), ("memory", _MEMORY))
        for over, under in (("200 shards", "20 shards"), ("2000 shards", "200 shards"))
    ),
    *(
        _most(2.0, _ratio("resume", f"bytes to the first batch, {at} over 1 %", at, one, "mb"))
        for one, at in (("1 %" + BARE, "50 %" + BARE), ("1 %" + BARE, "99 %" + BARE))
    ),
    _most(1.2, _ratio("seen", "resume, 10^8 seen over 10^4", "10^8 seen", "10^4 seen", _FIRST)),
)
