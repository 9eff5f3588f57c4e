"""A denoiser trained for real: stream, DeepSpeed workers, checkpoints, evaluation."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from diptych.cluster.shapes import Shape
from diptych.cluster.train import prepare, run_on
from diptych.errors import ExportError
from diptych.finetune.score import finished, score
from diptych.finetune.ship import ship
from diptych.pretrain.run import Run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

DIT = "{kind: dit, image_size: 16, patch: 4, width: 32, depth: 1, heads: 2, tokens: 12}"


def test_any_world_size_trains_the_same_denoiser(
    bucket: str, tiny: Callable[..., Run], tmp_path: Path
) -> None:
    """One worker and two: the same losses, the same checkpoint; then it is scored on test data."""
    made = []
    for workers in (1, 2):
        run = tiny(
            f"ddpm-{workers}", f"model={DIT}", "objectives=[{kind: ddpm}]", "steps=6",
            "checkpoint_steps=3",
        )  # fmt: skip
        place, data = prepare(run, Shape(workers=workers), f"{bucket}/runs/ddpm-{workers}")
        made.append(run_on(run, Shape(workers=workers), place, data, console=Console(quiet=True)))
    rows = [place.rows("metrics.jsonl") for place in made]
    assert len(rows[0]) == len(rows[1]) == 6
    for one, two in zip(*rows, strict=True):
        assert set(one) == set(two)
        assert {"ddpm.loss"} <= set(one)
        for name in set(one) - {"seconds"}:
            assert one[name] == pytest.approx(two[name], rel=2e-4), name
    single, double = (finished(place) for place in made)
    for name, ours in single.task.state_dict().items():
        torch.testing.assert_close(ours, double.task.state_dict()[name], atol=1e-4, rtol=1e-3)
    found = score(double, limit=32)
    assert math.isfinite(found["ddpm.loss"])
    with pytest.raises(ExportError, match="denoiser"):
        ship(double, "diptych", tmp_path / "out")
