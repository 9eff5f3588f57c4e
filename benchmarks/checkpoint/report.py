"""What was found, as a table and as plain values."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import ratios
from ..rounds import Row, rows

GOALS = {"torch.save": 0.15, "dcp async": 0.10, "persist raw": 1.3}
"""What ours may cost at most, as a share of an arm."""


def tell(record: Path, stage: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Prints both tables of a stage; returns medians and ratios."""
    known = list(rows(record))
    trained = [row for row in known if row["part"] == f"train {stage}"]
    kept = [row for row in known if row["part"] == f"persist {stage}"]
    added = {arm: _added(trained, arm, "wall_s") for arm in _arms(trained)}
    mine = [*added["ours"], *added["ours again"]]
    found: dict[str, Any] = {**facts, "load": max(row["load"] for row in known)}
    found["control s"] = statistics.median(
        abs(a - b) for a, b in zip(added["none"], added["none again"], strict=True)
    )
    table = Table(
        "arm", "added s", "stall s", "tail s", "CPU s", "stolen", "GB", "ours / it", "goal"
    )
    for arm, values in added.items():
        calm = arm.startswith("none")
        ratio = None if calm else statistics.median(mine) / statistics.median(values)
        times = [ratios.spread(_column(trained, arm, name)) for name in ("stall_s", "tail_s")]
        cpu = ratios.spread(_added(trained, arm, "cpu_s"))
        stolen = ratios.spread(_added(trained, arm, "stolen_s"))
        size = f"{_column(trained, arm, 'disk_gb')[0]:.2f}"
        shown = "" if ratio is None else f"{ratio:.2f}"
        cells = [str(cell) for cell in (ratios.spread(values), *times, cpu, stolen)]
        table.add_row(arm, *cells, size, shown, _goal(arm))
        found[arm] = {"added s": statistics.median(values), "ours / it": ratio}
    console = Console(width=130)
    console.print(table)
    table = Table("arm", "on disk after s", "CPU s", "ours / it", "goal")
    ours = _column(kept, "persist ours", "wall_s") + _column(kept, "persist ours again", "wall_s")
    for arm in _arms(kept):
        walls = _column(kept, arm, "wall_s")
        ratio = statistics.median(ours) / statistics.median(walls)
        cpu = ratios.spread(_column(kept, arm, "cpu_s"))
        table.add_row(arm, str(ratios.spread(walls)), str(cpu), f"{ratio:.2f}", _goal(arm))
        found[arm] = {"s": statistics.median(walls), "ours / it": ratio}
    console.print(table)
    return found


def _goal(arm: str) -> str:
    return f"at most {GOALS[arm]}" if arm in GOALS else ""


def _arms(found: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in found))


def _column(found: Sequence[Row], arm: str, name: str) -> list[float]:
    return list(ratios.values(found, arm, name).values())


def _added(found: Sequence[Row], arm: str, name: str) -> list[float]:
    """What an arm took more than the turns of its round that kept nothing, on average."""
    calm = [ratios.values(found, arm, name) for arm in ("none", "none again")]
    return [
        value - statistics.mean(each[number] for each in calm)
        for number, value in ratios.values(found, arm, name).items()
    ]
