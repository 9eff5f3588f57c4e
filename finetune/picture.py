"""A picture of a run: its loss curves, and some test images with question, prediction and truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..data.batch import Batch

_GOOD, _BAD = "#1a7f37", "#cf222e"


def draw(
    out: Path,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    batch: Batch,
    answers: Sequence[str],
) -> Path:
    """Writes a PNG and returns its path.

    Args:
        out: the file.
        curves: metrics rows of each run, by its name.
        batch: test rows to show.
        answers: the model's answer to each of them.
    """
    columns = max(1, len(curves))
    rows = -(-batch.rows // (2 * columns))
    figure = plt.figure(figsize=(6 * columns, 4 + 2.6 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[4, 2.6 * rows]).flat
    for axis, (name, points) in zip(_axes(above, 1, columns), curves.items(), strict=False):
        _curve(axis, name, points)
    cells = _axes(below, rows, 2 * columns)
    for axis in cells:
        axis.axis("off")
    for row, axis in zip(range(batch.rows), cells, strict=False):
        _answered(axis, batch, row, answers[row])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    plt.close(figure)
    return out


def _axes(figure: Any, rows: int, columns: int) -> list[Any]:
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def _curve(axis: Any, name: str, points: Sequence[Mapping[str, Any]]) -> None:
    for key in sorted({key for point in points for key in point if key.endswith(".loss")}):
        pairs = [(point["step"], point[key]) for point in points if key in point]
        axis.plot(*zip(*pairs, strict=True), label=key.removesuffix(".loss"), linewidth=1.2)
    axis.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()


def _answered(axis: Any, batch: Batch, row: int, answer: str) -> None:
    fields = batch.fields[row]
    truth = str(fields.get("answer"))
    axis.imshow(batch.image_BCHW[row].permute(1, 2, 0).cpu().numpy())
    title = f"{fields.get('question')}\n{answer}" + ("" if answer == truth else f" (is: {truth})")
    axis.set_title(title, fontsize=8, color=_GOOD if answer == truth else _BAD)
