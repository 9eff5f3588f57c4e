"""What a recipe leaves to be found out, put in as numbers before anything is begun."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from ..data import tokens
from ..data.batch import Batch
from ..data.loader import Loader
from ..errors import RecipeError
from .charts import open_plan
from .denoiser import Denoiser
from .first_stage import MEASURED, Stage
from .run import MOST_STEPS, Run

_ROWS = 512
"""Images that a scale is measured on: a thousandth of it, with latents of a thousand numbers."""
_DIGITS = 4
"""Digits of a scale that are kept, so that another machine's last bits make the same recipe."""


class Scale(NamedTuple):
    """What latents of real images are like, and so what makes them about one in spread."""

    scale: float
    """1 / standard deviation of all numbers of all latents."""
    mean: float
    deviation: float
    rows: int


def settled(run: Run) -> Run:
    """The run with its epochs counted in steps and the scale of its latents measured.

    Raises:
        DiptychError: the data or the first stage cannot be read.
    """
    if run.epochs is not None:
        steps = max(1, math.ceil(run.epochs * open_plan(run).steps_per_epoch))
        if steps > MOST_STEPS:
            raise RecipeError(
                f"epochs {run.epochs:g} are {steps:,} steps: more than {MOST_STEPS:,}."
            )
        run = run.model_copy(update={"steps": steps, "epochs": None})
    if isinstance(run.model, Denoiser) and run.model.first_stage.scale == MEASURED:
        alone = run.model.first_stage.model_copy(update={"scale": 1.0})
        scale = measure(alone.open(), first_rows(run)).scale
        stage = alone.model_copy(update={"scale": scale})
        run = run.model_copy(update={"model": run.model.model_copy(update={"first_stage": stage})})
    return run


def first_rows(run: Run, rows: int = _ROWS) -> Iterable[Batch]:
    """The first batches that the run trains on: in the order of its plan, and so of all shards."""
    plan = open_plan(run)
    url = run.data.tokenizer
    text = tokens.load(url, run.model.tokens)
    steps = max(1, min(math.ceil(rows / run.batch), math.ceil(plan.steps_per_epoch)))
    return (batch for _, batch in Loader(plan, text, run.rows, stop=steps))


@torch.no_grad()
def measure(stage: Stage, batches: Iterable[Batch], rows: int = 16) -> Scale:
    """The scale of a first stage's latents on images, encoded so many rows at a time.

    Where latents are drawn, their variance is that of the means and the mean of the variances.
    """
    count, total, squares, images = 0, 0.0, 0.0, 0
    for batch in batches:
        for first in range(0, batch.rows, rows):
            part = batch.take(first, first + rows).image_BCHW
            said = stage.moments(part.float() / 127.5 - 1)
            mean = said.mean.double()
            more = said.logvar.double().clamp(-30, 20).exp() if said.logvar is not None else None
            count, images = count + mean.numel(), images + len(part)
            total += float(mean.sum())
            squares += float(mean.pow(2).sum()) + (float(more.sum()) if more is not None else 0.0)
    middle = total / count
    deviation = math.sqrt(max(squares / count - middle**2, 1e-12))
    kept: Any = f"{1 / deviation:.{_DIGITS}g}"
    return Scale(float(kept), middle, deviation, images)
