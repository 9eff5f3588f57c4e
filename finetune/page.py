"""One self-contained HTML page of a fine-tuning: before and after, curves, measures, settings."""

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page tells."""

    title: str
    intro: Sequence[str]
    advice: str
    pictures: Sequence[tuple[str, bytes]]
    """Title and PNG file of each."""
    losses: Sequence[Mapping[str, Any]]
    """Rows of the run's metrics.jsonl."""
    measures: Sequence[Mapping[str, float]]
    """One row of each look, all with `step`."""
    best: int | None
    """Step of the row that is advised."""
    legend: Sequence[str]
    settings: Mapping[str, Any]
    recipe: str
    """YAML."""


def render(page: Page) -> str:
    """The page as HTML; it asks for no other file."""
    columns = list(page.measures[0]) if page.measures else []
    rows = [
        {"cells": [_shown(row[name]) for name in columns], "best": row["step"] == page.best}
        for row in page.measures
    ]
    return _template().render(
        title=page.title,
        intro=page.intro,
        advice=page.advice,
        pictures=[{"title": title, "png": _coded(png)} for title, png in page.pictures],
        curves=_coded(_curves(page.losses, page.measures)),
        columns=columns,
        rows=rows,
        legend=page.legend,
        settings=[(name, str(value)) for name, value in page.settings.items()],
        recipe=page.recipe,
    )


@functools.cache
def _template() -> jinja2.Template:
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(text)


def _curves(losses: Sequence[Mapping[str, Any]], measures: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the losses on the left and of the measures on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for key in sorted({key for row in losses for key in row if ".loss" in key}):
        pairs = [(row["step"], row[key]) for row in losses if key in row]
        left.plot(*zip(*pairs, strict=True), label=key, linewidth=1.1)
    left.set(title="loss", xlabel="step", ylim=(0, None))
    for key in [key for key in (measures[0] if measures else {}) if key != "step"]:
        steps = [row["step"] for row in measures]
        right.plot(steps, [row[key] for row in measures], "o-", label=key, markersize=3)
    right.set(title="measures", xlabel="step")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    plt.close(figure)
    return file.getvalue()


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _shown(value: float) -> str:
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
