"""Tables of cells, means over subjects and seeds with ranges; curves and grids beside them."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from PIL import Image

Row = dict[str, Any]
_MEASURES = {
    "dreambooth": ("similarity", "drift", "diversity"),
    "asides": ("similarity", "drift", "diversity"),
    "control": ("hint", "shuffled", "without"),
}
_MAY_BE_SHOWN = {"dreambooth"}
"""Pictures of Tiny ImageNet may not; those of the DreamBooth set may."""
_PAIRS = (
    ("full, prior", "full, no prior"),
    ("full, real prior", "full, no prior"),
    ("lora 4", "lora 4, no prior"),
)
_CELL, _BORDER, _COLUMNS = 64, 2, 6
"""Pixels of a sample in a grid of looks, between them, and how many are shown."""


def write(what: str, rows: Sequence[Row], home: Path, out: Path) -> Path:
    """Writes `WHAT-results.md` with its table, and plots and grids where they may be."""
    methods: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        methods[row["method"]].append(row)
    measures = _MEASURES[what]
    lines = [f"{len(rows)} runs; mean [lowest, highest] of subjects and seeds.", ""]
    lines.append("| method | runs | " + " | ".join(measures) + " | trained | file MB | minutes |")
    lines.append("|---" * (len(measures) + 5) + "|")
    if what != "control":
        lines.append(_line("the base itself", [row["first"] for row in rows], measures, "| |"))
    for method, found in methods.items():
        numbers, size = f"{found[0]['numbers']:,}", f"{found[0]['bytes'] / 1e6:.3f}"
        minutes = f"{sum(row['seconds'] for row in found) / len(found) / 60:.1f}"
        told = f"{numbers} | {size} | {minutes}"
        lines.append(_line(method, [row["last"] for row in found], measures, told))
    if what == "dreambooth":
        lines += ["", *_bounds(rows), "", *_kept(methods)]
    out.mkdir(parents=True, exist_ok=True)
    lines += ["", *_curves(what, methods, measures, out), *_grids(what, rows, home, out)]
    path = out / f"{what}-results.md"
    before = path.read_text().partition(_MARK)[0] if path.exists() else f"# {what}\n\n"
    path.write_text(before + _MARK + "\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))
    return path


_MARK = "<!-- below: written by benchmarks/personal -->"


def _line(name: str, looks: Sequence[Row], measures: Sequence[str], told: str) -> str:
    cells = [_spread([look[measure] for look in looks]) for measure in measures]
    return f"| {name} | {len(looks)} | " + " | ".join(cells) + f" | {told} |"


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f} [{min(values):.3f}, {max(values):.3f}]"


def _bounds(rows: Sequence[Row]) -> list[str]:
    """What similarity lies between, of each subject."""
    lines = ["| subject | base | a stranger's own pictures | the subject's own among themselves |"]
    lines.append("|---" * 4 + "|")
    for subject in dict.fromkeys(row["subject"] for row in rows):
        own = [row for row in rows if row["subject"] == subject]
        base = sum(row["first"]["similarity"] for row in own) / len(own)
        stranger = "none" if own[0]["stranger"] is None else f"{own[0]['stranger']:.3f}"
        lines.append(f"| {subject} | {base:.3f} | {stranger} | {own[0]['first']['among']:.3f} |")
    return lines


def _kept(methods: dict[str, list[Row]]) -> list[str]:
    """Drift with and without a prior, at the similarity that both runs reach."""
    lines = ["| with, without | subject, seed | similarity | drift with | drift without |"]
    lines.append("|---" * 5 + "|")
    for one, other in _PAIRS:
        theirs = {(row["subject"], row["seed"]): row for row in methods.get(other, [])}
        for row in methods.get(one, []):
            who = (row["subject"], row["seed"])
            if who not in theirs:
                continue
            both = [row["looks"], theirs[who]["looks"]]
            reached = min(max(look["similarity"] for look in looks) for looks in both)
            drifts = [f"{drift_at(looks, reached):.3f}" for looks in both]
            told = f"{who[0]}, {who[1]} | {reached:.3f} | {' | '.join(drifts)}"
            lines.append(f"| {one}; {other} | {told} |")
    return lines


def drift_at(looks: Sequence[Row], similarity: float) -> float:
    """Drift when a similarity was first reached, straight lines between looks.

    Raises:
        ValueError: it was never reached.
    """
    before = looks[0]
    for look in looks:
        if look["similarity"] >= similarity:
            room = look["similarity"] - before["similarity"]
            share = (similarity - before["similarity"]) / room if room > 0 else 1.0
            return float(before["drift"] + share * (look["drift"] - before["drift"]))
        before = look
    raise ValueError(f"no look reaches a similarity of {similarity}")


def _curves(
    what: str, methods: dict[str, list[Row]], measures: Sequence[str], out: Path
) -> list[str]:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    first, second = measures[:2]
    for method, rows in methods.items():
        looks = [_mean(at) for at in zip(*(row["looks"] for row in rows), strict=True)]
        steps, values = [look["step"] for look in looks], [look[first] for look in looks]
        axes[0].plot(steps, values, marker="o", markersize=3, label=method)
        axes[1].plot([look[second] for look in looks], values, marker="o", markersize=3)
    axes[0].set(xlabel="step", ylabel=first)
    axes[1].set(xlabel=second, ylabel=first)
    axes[0].legend(fontsize=6)
    path = out / f"{what}-curves.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return [f"![curves]({path.name})", ""]


def _mean(looks: Sequence[Row]) -> dict[str, float]:
    return {name: sum(look[name] for look in looks) / len(looks) for name in looks[0]}


def _grids(what: str, rows: Sequence[Row], home: Path, out: Path) -> list[str]:
    """One picture a subject: the base and each method, of the first seed, from the same noise."""
    if what not in _MAY_BE_SHOWN:
        return ["Grids stay in the runs' folders: pictures of Tiny ImageNet may not be shown."]
    lines: list[str] = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        own = [row for row in rows if row["subject"] == subject]
        own = [row for row in own if row["seed"] == own[0]["seed"]]
        sheet = _sheet([(own[0], 0), *((row, row["last"]["step"]) for row in own)], home)
        path = out / f"{what}-{subject}.png"
        sheet.quantize(192).save(path, optimize=True)
        names = "; ".join(["the base", *(row["method"] for row in own)])
        lines += [f"{subject}, seed {own[0]['seed']}, rows from the top: {names}. On the left ", ""]
        lines[-2] += "pictures of the subject's prompt, on the right of the class's."
        lines += [f"![{subject}]({path.name})", ""]
    return lines


def _sheet(shown: Sequence[tuple[Row, int]], home: Path) -> Image.Image:
    pitch = _CELL + _BORDER
    width, gap = _COLUMNS * pitch, 3 * _BORDER
    sheet = Image.new("RGB", (width + gap + width // 2, len(shown) * pitch))
    for number, (row, step) in enumerate(shown):
        with Image.open(home / row["name"] / "samples" / f"{step:08d}.png") as look:
            look.load()
        mine = look.crop((0, 0, width, pitch))
        others = look.crop((0, pitch, width // 2, 2 * pitch))
        sheet.paste(mine, (0, number * pitch))
        sheet.paste(others, (width + gap, number * pitch))
    return sheet
