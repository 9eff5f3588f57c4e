"""The tables, the curves and the grids of the reproduction, of as much as is there."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from .cells import ETAS, Cell, Plan
from .runs import MAIN, OTHERS

Row = dict[str, Any]
_COLOUR, _SHAPE = 0.90, 0.85
"""The goals."""
_HITS = ("accuracy.color", "accuracy.shape", "accuracy.all")
_FAR = ("frechet.taef2", "precision.taef2", "recall.taef2")
NAME = "reproduce-diffusion"


def report(plan: Plan, rows: Sequence[Row], runs: Path, drawn: dict[str, Path], docs: Path) -> None:
    """Writes reproduce-diffusion.md with its pictures."""
    docs.mkdir(parents=True, exist_ok=True)
    known = {row["name"]: row for row in rows}
    lines = [*_head(plan, known)]
    lines += ["", "## Guidance", "", *_guidance(plan, known)]
    lines += ["", "## Steps of DDIM", "", *_lengths(plan, known)]
    lines += ["", "## Average against last weights", "", *_training(plan, known)]
    lines += ["", "## Caption dropout", "", *_dropout(plan, known)]
    lines += ["", "## v, epsilon and flow at equal steps", "", *_targets(plan, known)]
    _plot(plan, known, runs, docs / f"{NAME}.png")
    lines += ["", f"![curves]({NAME}.png)", ""]
    for name, file in drawn.items():
        target = docs / f"{NAME}-{name}.png"
        shutil.copy(file, target)
        lines += [_CAPTIONS[name], "", f"![{name}]({target.name})", ""]
    (docs / f"{NAME}.md").write_text("\n".join(lines))
    print(docs / f"{NAME}.md")


_CAPTIONS = {
    "prompts": "Every colour and shape, one image each, none chosen:",
    "guidance": "The same noise at guidance scales 1, 2, 3, 5 and 8, from above:",
    "steps": "The same noise after 5, 10, 25, 50 and 100 steps, at eta 0 and then at eta 1:",
}


def _head(plan: Plan, known: dict[str, Row]) -> list[str]:
    sizes, cell, error = plan.sizes, plan.headline, 30 / plan.samples**0.5
    lines = [
        "# What text-conditional latent diffusion learns",
        "",
        'easy-VQA, "a teal triangle": 2,361 images of 64 pixels in TAEF2 latents, a U-Net of',
        f"channels 48 and 96 (2.4 million parameters with its text encoder), {sizes.steps} steps",
        "of 64 rows at a constant learning rate. Prompts are those of the 880 test images. The",
        f"classifier was trained on 1,181 other images for {sizes.classifier} steps. Unless a",
        "table says otherwise: DDIM, 25 steps, eta 0, guidance scale 3, the moving average, after",
        f"all steps, {plan.samples} images (standard error at 90 %: {error:.1f} points).",
        f"Made by `make {NAME}`.",
        "",
    ]
    row = known.get(cell.name)
    if row is None:
        return [*lines, "Not drawn yet."]
    reached = row["accuracy.color"] >= _COLOUR and row["accuracy.shape"] >= _SHAPE
    return [
        *lines,
        f"| {row['samples']} images | colour | shape | both |",
        "|---|---|---|---|",
        _line("drawn", [row], _HITS),
        _line("real test images", [row], [f"real.{name}" for name in _HITS]),
        "",
        f"The goal, {_COLOUR:.0%} and {_SHAPE:.0%}, is {'reached' if reached else '**missed**'}.",
        f"Of the drawn images {row['copied.taef2']:.0%} are nearer to a training image than to a",
        "test image in TAEF2's features, 50 % where nothing is copied. Frechet distance there:",
        f"{row['frechet.taef2']:.3f}, of as many training images {row['real.frechet.taef2']:.3f}.",
    ]


def _table(
    what: str, cells: Iterable[tuple[str, Cell]], known: dict[str, Row], names: Sequence[str]
) -> list[str]:
    lines = [f"| {what} | {' | '.join(_short(name) for name in names)} |"]
    lines += ["|---" * (1 + len(names)) + "|"]
    return lines + [_line(said, [known.get(cell.name)], names) for said, cell in cells]


def _line(said: str, rows: Sequence[Row | None], names: Sequence[str]) -> str:
    found = [_say(name, row) for row in rows for name in names]
    return f"| {said} | {' | '.join(found)} |"


def _say(name: str, row: Row | None) -> str:
    if row is None or name not in row:
        return "-"
    return f"{row[name]:.1%}" if "accuracy" in name else f"{row[name]:.3f}"


def _short(name: str) -> str:
    first, _, last = name.partition(".")
    return {"color": "colour", "all": "both"}.get(last, last) if first == "accuracy" else first


def _guidance(plan: Plan, known: dict[str, Row]) -> list[str]:
    cells = [(f"{cell.scale:g}", cell) for cell in plan.guidance]
    return [
        *_table("scale", cells, known, (*_HITS, *_FAR)),
        "",
        "Precision is the share of drawn images among real ones, recall the share of real ones",
        "among drawn ones, in TAEF2's latents.",
    ]


def _lengths(plan: Plan, known: dict[str, Row]) -> list[str]:
    cells = [(f"{cell.steps}, eta {cell.eta:g}", cell) for cell in plan.lengths]
    return _table("steps", cells, known, _HITS)


def _training(plan: Plan, known: dict[str, Row]) -> list[str]:
    kinds = {"ema": "average", "raw": "last"}
    cells = [(f"{cell.step}, {kinds[cell.weights]}", cell) for cell in plan.training]
    return _table("trained for", cells, known, _HITS)


def _dropout(plan: Plan, known: dict[str, Row]) -> list[str]:
    said = {MAIN: "15 % dropped", "easy-no-drop": "none dropped"}
    cells = [(f"{said[cell.run]}, scale {cell.scale:g}", cell) for cell in plan.dropout]
    return _table(f"{plan.sizes.others} steps", cells, known, _HITS)


def _targets(plan: Plan, known: dict[str, Row]) -> list[str]:
    said = {MAIN: "v", "easy-epsilon": "epsilon", "easy-flow": "rectified flow, Euler"}
    cells = [(said[cell.run], cell) for cell in plan.targets]
    return _table(f"{plan.sizes.others} steps", cells, known, _HITS)


def _plot(plan: Plan, known: dict[str, Row], runs: Path, file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((loss, scale), (length, step)) = plt.subplots(2, 2, figsize=(9, 6.5))
    for run in (MAIN, *OTHERS):
        found = _losses(runs / run)
        loss.plot([row["step"] for row in found], [row["loss"] for row in found], label=run)
    loss.set(xlabel="steps", ylabel="training loss", yscale="log")
    _draw(scale, plan.guidance, known, lambda cell: cell.scale)
    scale.set(xlabel="guidance scale", ylabel="accuracy")
    for eta in ETAS:
        cells = [cell for cell in plan.lengths if cell.eta == eta]
        _draw(length, cells, known, lambda cell: cell.steps, f", eta {eta:g}", dashed=eta > 0)
    length.set(xlabel="steps of DDIM", ylabel="accuracy", xscale="log")
    for weights in ("ema", "raw"):
        cells = [cell for cell in plan.training if cell.weights == weights]
        _draw(step, cells, known, lambda cell: cell.step, f", {weights}", dashed=weights == "raw")
    step.set(xlabel="steps of training", ylabel="accuracy")
    for axes in (loss, scale, length, step):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _draw(
    axes: Any,
    cells: Sequence[Cell],
    known: dict[str, Row],
    at: Callable[[Cell], float],
    said: str = "",
    *,
    dashed: bool = False,
) -> None:
    there = [cell for cell in cells if cell.name in known]
    for name, colour in zip(_HITS[:2], ("tab:blue", "tab:orange"), strict=True):
        values = [known[cell.name][name] for cell in there]
        style = "--" if dashed else "-"
        axes.plot([at(cell) for cell in there], values, style, marker="o", color=colour,
                  label=f"{_short(name)}{said}")  # fmt: skip


def _losses(run: Path) -> list[Row]:
    """The steps and losses of a run's metrics; of a step that was done twice the last."""
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    latest = {row["step"]: row for row in rows}
    return [
        {"step": step, "loss": next(v for name, v in row.items() if name.endswith(".loss"))}
        for step, row in sorted(latest.items())
    ]
