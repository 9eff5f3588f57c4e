"""Tables of cells, means over subjects and seeds with their ranges, and grids beside them."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_MEASURES = {
    "dreambooth": ("similarity", "among", "drift", "diversity"),
    "control": ("hint", "shuffled", "without"),
}
_MAY_BE_SHOWN = {"dreambooth"}
"""Pictures of Tiny ImageNet may not; those of the DreamBooth set may."""


def write(what: str, rows: Sequence[Row], home: Path, out: Path) -> Path:
    """Writes `reproduce-WHAT.md`, and a grid of each method of the first seed where they may be."""
    methods: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        methods[row["method"]].append(row)
    measures = _MEASURES[what]
    lines = [f"# make reproduce-{what}", "", f"{len(rows)} runs; mean [lowest, highest].", ""]
    lines.append("| method | runs | " + " | ".join(measures) + " | trained MB | minutes |")
    lines.append("|---" * (len(measures) + 4) + "|")
    if what == "dreambooth":
        first = [row["first"] for row in rows]
        lines.append(_line("the base itself", len(first), first, measures, "", ""))
    for method, found in methods.items():
        size = f"{found[0]['trained bytes'] / 1e6:.3f}"
        minutes = f"{sum(row['seconds'] for row in found) / len(found) / 60:.1f}"
        last = [row["last"] for row in found]
        lines.append(_line(method, len(found), last, measures, size, minutes))
    lines += ["", *_grids(what, methods, home, out)]
    path = out / f"reproduce-{what}.md"
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return path


def _line(
    name: str, runs: int, looks: Sequence[Row], measures: Sequence[str], size: str, minutes: str
) -> str:
    cells = [_spread([look[measure] for look in looks]) for measure in measures]
    return f"| {name} | {runs} | " + " | ".join(cells) + f" | {size} | {minutes} |"


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f} [{min(values):.3f}, {max(values):.3f}]"


def _grids(what: str, methods: dict[str, list[Row]], home: Path, out: Path) -> list[str]:
    if what not in _MAY_BE_SHOWN:
        return ["Grids stay in the runs' folders: pictures of Tiny ImageNet may not be shown."]
    lines: list[str] = []
    for method, rows in methods.items():
        row = min(rows, key=lambda one: (one["seed"], one["name"]))
        grid = home / row["name"] / "samples" / f"{row['last']['step']:08d}.png"
        target = out / f"{what}-{row['name']}.png"
        shutil.copy(grid, target)
        lines.append(f"{method}, {row['subject']}, seed {row['seed']}: ![{method}]({target.name})")
        lines.append("")
    return lines
