"""Training a control beside a base: its recipe, and how well samples keep to their hints.

N pictures, H x W pixels, C channels.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import plain, to_yaml
from ..data import storage
from ..data.index import open_manifest
from ..data.loader import Recipe, once
from ..errors import RecipeError
from ..pretrain import checkpoint
from ..pretrain.control import Port
from ..pretrain.diffusion.sampling import Sampling
from ..pretrain.hint import Hint
from ..pretrain.run import Run, revise
from ..pretrain.rundir import RunDir
from .guided import draw, open_control
from .metrics.edges import agreement
from .page import Page, render
from .parts import KINDS
from .sample import Painter, grid, png

ROWS = "looks.jsonl"


def recipe(
    base: Painter,
    name: str,
    data: str,
    control: dict[str, Any],
    *,
    steps: int,
    batch: int | None = None,
    lr: float | None = None,
    looks: int = 8,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Run:
    """The base's recipe with a control: half of the captions dropped, so that the hint must do.

    A T2I-Adapter's timesteps are cubic, as in its paper.

    Args:
        base: the run to start from.
        name: of the new run.
        data: URL of its pictures.
        control: its record, plain: `{kind: controlnet, hint: {kind: canny}}`.
        steps: to train.
        batch: rows of a step; the base's by default.
        lr: half of the base's by default.
        looks: checkpoints, each looked at.
        seed: of the new run.
        settings: of the recipe, `path=value`.
    """
    values = plain(base.run)
    every = max(1, steps // looks)
    objectives = [{**one, "drop": 0.5} for one in values["objectives"]]
    if control["kind"] == "t2i_adapter":
        objectives = [{**o, **({"times": "cubic"} if "times" in o else {})} for o in objectives]
    values |= {
        "name": name,
        "objectives": objectives,
        "control": control,
        "adapters": [],
        "data": values["data"]
        | {"train": data, "caches": [], "tokenizer": base.place.at("tokenizer.json")},
        "optim": values["optim"] | {"lr": lr or base.run.optim.lr / 2, "warmup_steps": 20},
        "batch": batch or base.run.batch,
        "steps": every * max(1, round(steps / every)),
        "epochs": None,
        "seed": seed,
        "start_from": base.place.url,
        "text_from": None,
        "log_steps": next(n for n in range(max(1, every // 10), every + 1) if every % n == 0),
        "checkpoint_steps": every,
    }
    return revise(values, list(settings), KINDS, source=f"control beside {base.place.name}")


class Kept(NamedTuple):
    """How well samples keep to hints: edges by their F1, other hints by 1 less mean difference."""

    step: int
    hint: float
    """Of samples to the hints that they were drawn with."""
    shuffled: float
    """To the hints of other samples: what chance gives."""
    without: float
    """Of samples of the same noise and text without a control."""


@dataclass(frozen=True)
class Exam:
    """Pictures with their texts and hints, drawn anew at each look."""

    texts: tuple[str, ...]
    images_NHWC: Tensor
    hints_NCHW: Tensor
    """uint8."""


def exam(base: Painter, url: str, hint: Hint, count: int, field: str | None = None) -> Exam:
    """The first pictures of a dataset; of a shuffled one, if it is to have all sorts.

    Args:
        base: the run to start from.
        url: of the dataset.
        hint: what is drawn of each picture.
        count: pictures.
        field: where their texts stand; as in the base's data by default.

    Raises:
        RecipeError: the hint is drawn from annotations, which samples have none of.
    """
    if hint.reads != ("image",):
        raise RecipeError(
            f"the hint {hint.kind!r} is drawn from annotations, which samples have none of, so how "
            "well they keep to it cannot be measured. Train with it by `diptych train` and a "
            f"recipe with start_from, control: {{hint: {{kind: {hint.kind}}}}} and its cache in "
            f"data.hints.{hint.kind}."
        )
    size = base.run.model.image_size
    rows = Recipe(text=field or base.run.data.text, image_size=size, seed=0)
    batch = next(once(open_manifest(url), base.text, rows, batch=count, limit=count))
    texts = tuple(base.text.decode(ids.tolist()) for ids in batch.tokens_BL)
    images = batch.image_BCHW
    return Exam(texts, images.permute(0, 2, 3, 1).contiguous(), hint.live(images))


def keeps(hint: Hint, images_NHWC: Tensor, hints_NCHW: Tensor) -> float:
    """How well pictures keep to hints, from 0 to 1; see `Kept`."""
    redrawn = [hint.drawn(image.numpy()) for image in images_NHWC]
    pairs = zip(redrawn, hints_NCHW.numpy(), strict=True)
    if hint.channels == 1 and set(np.unique(hints_NCHW.numpy())) <= {0, 255}:
        return float(np.mean([agreement(made[0], told[0]).f1 for made, told in pairs]))
    apart = [np.abs(made.astype(float) - told.astype(float)).mean() for made, told in pairs]
    return 1 - float(np.mean(apart)) / 255


@dataclass(frozen=True)
class ControlWatch:
    """Looks at a control's checkpoints."""

    place: RunDir
    base: Painter
    hint: Hint
    asked: Exam
    how: Sampling

    def looks(self) -> list[Kept]:
        """All that were kept, in order of their steps."""
        rows = {row["step"]: Kept(**row) for row in self.place.rows(ROWS)}
        return [rows[step] for step in sorted(rows)]

    def catch_up(self, told: Callable[[Kept], None] = lambda look: None) -> list[Kept]:
        """Looks at every checkpoint that is there and was not looked at."""
        done = {look.step for look in self.looks()}
        for step in checkpoint.steps(self.place.url):
            if step not in done:
                told(self._look(step))
        return self.looks()

    def grid_of(self, step: int) -> bytes:
        """The PNG of a look: pictures, hints, samples with them, samples without."""
        return storage.read(self.place.at("samples", f"{step:08d}.png"))

    def _look(self, step: int) -> Kept:
        asked, port = self.asked, open_control(self.place, self.base, step=step)
        with_it = draw(self.base, asked.texts, self.how, [(port, asked.hints_NCHW, 1.0)])
        without = draw(self.base, asked.texts, self.how, [])
        found = Kept(
            step,
            keeps(self.hint, with_it, asked.hints_NCHW),
            keeps(self.hint, with_it, asked.hints_NCHW.roll(1, 0)),
            keeps(self.hint, without, asked.hints_NCHW),
        )
        hints = asked.hints_NCHW.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
        sheet = grid(torch.cat([asked.images_NHWC, hints, with_it, without]), len(asked.texts))
        storage.write(self.place.at("samples", f"{step:08d}.png"), png(sheet))
        rows = [*self.place.rows(ROWS), found._asdict()]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write(self.place.at(ROWS), text.encode())
        return found


def tell(watch: ControlWatch, run: Run) -> str:
    """Writes the result page; returns its URL."""
    looks = watch.looks()
    best, last = max(looks, key=lambda look: look.hint), looks[-1]
    gain = best.hint - max(best.shuffled, best.without)
    page = Page(
        title=f"{watch.place.name}: {watch.hint.kind}",
        intro=[
            f"Beside {watch.base.place.name}, step {watch.base.step}. Each grid: pictures, their "
            "hints, samples with these hints, samples without, from the same noise in all grids.",
            f"Prompts, from the left: {'; '.join(map(repr, watch.asked.texts))}.",
        ],
        advice=(
            f"Step {best.step} keeps to its hints best: {best.hint:.3f}, {gain:+.3f} above chance."
            + (" More steps may help." if best.step == last.step else "")
        ),
        pictures=[(f"step {s}", watch.grid_of(s)) for s in sorted({looks[0].step, last.step})],
        losses=watch.place.rows("metrics.jsonl"),
        measures=[look._asdict() for look in looks],
        best=best.step,
        legend=(
            "hint: how well samples keep to their own hints (F1 of edges within a pixel, or 1 less "
            "the mean difference); shuffled: to another sample's; without: drawn without control.",
        ),
        settings={"sampling": plain(watch.how), "control": plain(run)["control"]},
        recipe=to_yaml(run),
    )
    url = watch.place.at("result.html")
    storage.write(url, render(page).encode())
    return url


def parameters(port: Port) -> int:
    """How many numbers a control is."""
    return sum(param.numel() for param in port.parameters())
