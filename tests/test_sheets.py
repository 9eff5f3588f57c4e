"""Sheets of samples while a run trains: at every ZeRO stage, and training never notices."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diptych.cluster.shapes import Shape
from diptych.cluster.train import prepare, run_on
from diptych.data import storage
from diptych.errors import RecipeError
from diptych.pretrain.checkpoint import EMA, open_checkpoint
from diptych.pretrain.diffusion.sheet import due
from diptych.pretrain.run import Run

STAGES = ((1, 0), (2, 0), (2, 2), (2, 3))
"""(workers, ZeRO stage)."""
UNET = {"kind": "unet", "channels": [8, 16], "groups": 4, "heads": 2, "width": 8, "tokens": 4}
SHEET = {"prompts": ["red", "blue", "red blue"], "n": 1, "how": {"steps": 3, "eta": 1.0}}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, bool], tuple[str, Any]]:
    """(workers, stage, with sheets) -> the folder, and [losses, pictures]."""
    place = tmp_path_factory.mktemp("sheets")
    model = UNET | {"image_size": 8}
    more = {"model": model, "objectives": [{"kind": "ddpm"}], "samples": SHEET}
    cases = [(*stage, sheets) for stage in STAGES for sheets in (True, False)]
    jobs = [
        {
            "do": "draw",
            "shape": {"workers": workers, "zero_stage": stage},
            "steps": 3,
            "sheets": sheets,
            "out": f"{place}/{workers}-{stage}-{sheets}",
            "recipe": more,
        }
        for workers, stage, sheets in cases
    ]
    found = ranks.run(place, jobs)
    return {c: (j["out"], f) for c, j, f in zip(cases, jobs, found, strict=True)}


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(storage.read(url)))).astype(int)


@pytest.mark.parametrize(("workers", "stage"), STAGES)
def test_training_never_notices(said: Any, workers: int, stage: int) -> None:
    (with_it, [losses, _]), (without, [others, nothing]) = (
        said[workers, stage, sheets] for sheets in (True, False)
    )
    assert losses == others
    assert not nothing
    ours, theirs = (open_checkpoint(url, 3) for url in (with_it, without))
    for kind in ours.kinds:
        weights = ours.weights(kind)
        for name, other in theirs.weights(kind).items():
            assert torch.equal(weights[name], other), f"{kind} {name}"


@pytest.mark.parametrize(("workers", "stage"), STAGES)
def test_every_world_draws_the_same(said: Any, workers: int, stage: int) -> None:
    names = [f"step-{step:06d}-{kind}.png" for step in (1, 2, 3) for kind in ("raw", "ema")]
    drawn = said[workers, stage, True][1][1]
    assert [Path(url).name for url in drawn] == names
    alone = said[1, 0, True][1][1]
    for url, other in zip(drawn, alone, strict=True):
        assert np.abs(pixels(url) - pixels(other)).mean() < 1, url
    raw, averaged = pixels(drawn[4]), pixels(drawn[5])
    assert np.abs(raw - averaged).mean() > 2  # the average is another model
    assert raw.shape == (3 * 10 + 2, 8 + 4, 3)  # one row a prompt


def test_the_average_is_what_is_drawn_with(said: Any) -> None:
    checkpoint = open_checkpoint(said[2, 3, True][0], 3)
    assert EMA in checkpoint.kinds
    raw, averaged = checkpoint.weights(), checkpoint.weights(EMA)
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_when_they_are_due(small: Callable[..., Run]) -> None:
    assert [done for done in range(1, 11) if due(4, done, 10)] == [4, 8, 10]
    assert not due(None, 10, 10)
    with pytest.raises(RecipeError, match="'vlp' draws no images"):
        small("sample_steps=5")
    model = "model={kind: dit, image_size: 16, width: 16, depth: 1, heads: 2}"
    with pytest.raises(RecipeError, match=r"samples\.prompts"):
        small(model, "objectives=[{kind: ddpm}]", "sample_steps=5")
    named = [model, "objectives=[{kind: ddpm}]", "sample_steps=5", "model.classes=[cat, dog]"]
    assert small(*named).prompts == ("cat", "dog")
    with pytest.raises(RecipeError, match="1024 images"):
        small(*named, "samples.prompts=[a, b]", "samples.n=600")


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_here")
def test_a_run_shows_itself_in_tensorboard(
    bucket: str, tiny: Callable[..., Run], tmp_path: Path
) -> None:
    run = tiny(
        "sheets", "model={kind: dit, image_size: 16, patch: 4, width: 32, depth: 1, heads: 2}",
        "objectives=[{kind: ddpm}]", "steps=5", "checkpoint_steps=5", "ema.decay=0.9",
        "sample_steps=2", "samples={prompts: [a teal circle], n: 2, how: {steps: 2}}",
    )  # fmt: skip
    place, data = prepare(run, Shape(workers=2), f"{bucket}/runs/sheets")
    run_on(run, Shape(workers=2), place, data, console=Console(quiet=True))
    names = [f"step-{step:06d}-{kind}.png" for step in (2, 4, 5) for kind in ("ema", "raw")]
    assert sorted(storage.children(place.at("samples"))) == names
    for name in storage.children(place.at("tensorboard")):
        (tmp_path / name).write_bytes(storage.read(place.at("tensorboard", name)))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"samples/raw", "samples/ema"} <= set(events.Tags()["images"])
    assert [each.step for each in events.Images("samples/ema")] == [2, 4, 5]
    assert [each.step for each in events.Scalars("ddpm/loss")] == [1, 2, 3, 4, 5]
