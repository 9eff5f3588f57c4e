"""A hint whose channels stand beside the latents: conditioning by concatenation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, ExportError, RecipeError
from diptych.finetune.guided import asked_for
from diptych.finetune.parts import KINDS
from diptych.finetune.pipeline import require
from diptych.finetune.sample import Painter
from diptych.finetune.start import start_plain
from diptych.pretrain.denoiser import Denoiser
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.encoders import Palette
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

UNET: dict[str, Any] = {"kind": "unet", "image_size": 16, "channels": [8, 16], "heads": 2}
UNET |= {"groups": 4, "width": 16, "tokens": 12}
DIT: dict[str, Any] = {"kind": "dit", "image_size": 16, "width": 16, "depth": 1, "heads": 2}
DIT |= {"tokens": 12}
PALETTE = {"kind": "palette", "cells": 2}
BOTH = pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])


def settings(model: dict[str, Any], beside: dict[str, Any] | None = PALETTE, **more: Any) -> Run:
    values: dict[str, Any] = {
        "name": "beside",
        "model": {**model, "beside": beside},
        "objectives": [{"kind": "ddpm", "drop": 0.0}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    return parse_run({**values, **more}, KINDS, source="test")


def task_of(run: Run, text: Text, seed: int = 0) -> Task:
    torch.manual_seed(seed)
    task = run.task(text)
    for param in task.model.parameters():
        torch.nn.init.normal_(param, std=0.1)
    return task.eval()


def said(task: Task, batch: Batch) -> Tensor:
    with torch.no_grad():
        view = replace(task.look(batch), time_B=torch.arange(batch.rows) * 200.0)
        return task.model(view).said_BCHW


def hints(batch: Batch, hint_BCHW: Tensor) -> Batch:
    return replace(batch, hints={"palette": hint_BCHW})


@BOTH
def test_it_sees_what_came_or_is_drawn_of_the_pictures(
    model: dict[str, Any], text: Text, rows: Callable[..., Batch]
) -> None:
    run, batch = settings(model), rows(4)
    task = task_of(run, text)
    drawn = said(task, batch)
    assert drawn.shape == (4, 3, 16, 16)
    own_BCHW = Palette(cells=2).live(batch.image_BCHW)
    assert torch.equal(said(task, hints(batch, own_BCHW)), drawn)
    other = said(task, hints(batch, own_BCHW.flip(0)))
    assert all(not torch.equal(one, two) for one, two in zip(other, drawn, strict=True))


def test_cells_of_a_latent_see_the_mean_of_their_pixels(
    text: Text, rows: Callable[..., Batch]
) -> None:
    run = settings(UNET, {"kind": "canny"})
    spec: Any = run.model
    hint_BCHW = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    hint_BCHW[:, :, 0, 0] = 255
    task = task_of(run, text)
    view = task.look(replace(rows(4), hints={"canny": hint_BCHW}))
    seen = spec.seen(view)
    assert seen.shape == (4, 4, 16, 16)
    assert torch.equal(seen[:, :3], view.image_BCHW)
    assert seen[0, 3, 0, 0] == -0.5 and bool((seen[0, 3].flatten()[1:] == -1).all())


@BOTH
def test_it_begins_as_the_model_without(
    model: dict[str, Any], text: Text, rows: Callable[..., Batch]
) -> None:
    base, wide = task_of(settings(model, None), text), task_of(settings(model), text, seed=1)
    found, spec = start_plain(wide, base.state_dict(), "/base"), cast(Denoiser, wide.spec)
    assert found.widened == (f"model.{spec.entrance}",)
    assert not any(name.startswith("model.") for name in found.fresh)
    torch.testing.assert_close(said(wide, rows(4)), said(base, rows(4)), rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        start_plain(base, wide.state_dict(), "/wide")


def test_it_learns_what_the_hint_says(text: Text) -> None:
    """Patches of colours drawn at random: with its own palette it tells them from noise."""
    torch.manual_seed(0)
    task = settings(DIT, {"kind": "palette", "cells": 8}).task(text)
    optim = torch.optim.AdamW(task.parameters(), lr=3e-3)
    ids, real = text.encode([""] * 32)

    def batch(number: int) -> Batch:
        draw = torch.Generator().manual_seed(number)
        colours = torch.randint(0, 256, (32, 3, 8, 8), generator=draw, dtype=torch.uint8)
        image_BCHW = colours.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return Batch(
            keys=tuple(map(str, range(32))),
            draws_B=torch.randint(1 << 62, (32,), generator=draw),
            image_BCHW=image_BCHW,
            tokens_BL=ids,
            real_BL=real,
            fields=({},) * 32,
        )

    for step in range(120):
        optim.zero_grad()
        task(batch(step)).total.backward()
        optim.step()
    held = batch(10_000)
    with torch.no_grad():
        own = task(held).total.item()
        others = task(hints(held, held.image_BCHW.roll(1, 0))).total.item()
    assert own < 0.6 * others, (own, others)


def painter(run: Run, text: Text) -> Painter:
    return Painter(RunDir("/nowhere/beside"), run, text, task_of(run, text), 0, "raw")


def test_a_picture_is_given_where_it_draws(text: Text, tmp_path: Path) -> None:
    found, how = painter(settings(DIT), text), Sampling(steps=2, guidance_scale=3)
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (40, 24), colour).save(tmp_path / f"{name}.png")

    def drawn(*controls: str) -> np.ndarray:
        change = asked_for(controls, found, RunDir, (16, 16))
        return found.draw(["a picture"] * 3, how, change=change).numpy()

    red, blue = (drawn(f"palette={tmp_path}/{name}.png") for name in ("red", "blue"))
    assert red.shape == (3, 16, 16, 3) and not np.array_equal(red, blue)
    with pytest.raises(RecipeError, match=r"sees a palette beside .*--control palette=PICTURE"):
        drawn()
    with pytest.raises(RecipeError, match=r"has no weight; leave @0\.5"):
        drawn(f"palette={tmp_path}/red.png@0.5")


def test_what_cannot_be_is_refused(text: Text) -> None:
    with pytest.raises(RecipeError, match="leave sample_steps unset"):
        settings(UNET, sample_steps=10, samples={"prompts": ["a"]})
    with pytest.raises(RecipeError, match="unknown 'depth'"):
        settings(UNET, {"kind": "depth"})
    data = {"train": "/nowhere", "tokenizer": "/nowhere.json", "hints": {"palette": "/p"}}
    assert settings(UNET, data=data).rows.hints["palette"].channels == 3
    with pytest.raises(ExportError, match="sees a palette beside its latents"):
        require(settings({**UNET, "text": "clip"}))
