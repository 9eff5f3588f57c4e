"""What `plan` says of memory, by shape."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diptych.cluster.estimate import memory
from diptych.cluster.shapes import Shape
from diptych.data.tokens import Text
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Sizes = Callable[..., tuple[dict[str, int], dict[str, int]]]
KEPT = "master weights and moments"


@pytest.fixture
def task(small: Any, text: Text) -> Task:
    with torch.device("meta"):
        return small().task(text)


@pytest.fixture
def sizes(task: Task, small: Any) -> Sizes:
    """`sizes("ema.decay=0.9", zero_stage=3, ...)`: of four workers in fp32, whole_below 0."""

    def find(*settings: str, **shape: Any) -> tuple[dict[str, int], dict[str, int]]:
        run: Run = small(*settings)
        return memory(task, run, Shape(**{"workers": 4, "whole_below": 0, **shape}))

    return find


def test_each_stage_shares_out_one_thing_more(task: Task, sizes: Sizes) -> None:
    count = sum(p.numel() for p in task.parameters())
    words = sum(p.numel() for p in task.shared)
    part = count // 4
    assert sizes(zero_stage=0)[0] == {
        "weights": 4 * count,
        "gradients": 4 * count,
        "moments": 8 * count,
    }
    assert sizes(zero_stage=1)[0] == {
        "weights": 4 * count,
        "gradients": 4 * count,
        KEPT: 12 * part,
        "buffers": 4 * count,
    }
    assert sizes(zero_stage=2)[0]["gradients"] == 4 * part
    three = sizes(zero_stage=3)[0]
    assert three["weights"] == 4 * words + (count - words) // 4 * 4
    assert three["moments"] == 8 * part
    assert sizes(zero_stage=3, precision="bf16")[0][KEPT] == 12 * part
    assert sizes(zero_stage=3, whole_below=1 << 30)[0]["weights"] == 4 * count


def test_what_is_offloaded_is_in_the_host(sizes: Sizes) -> None:
    here, host = sizes(
        "ema.decay=0.9", zero_stage=3, offload_optimiser="cpu", offload_weights="cpu"
    )
    assert set(here) == {"weights", "gradients", "buffers"}
    assert set(host) == {"weights", KEPT, "moving average"}
    assert "moving average" in sizes("ema.decay=0.9")[0]
    assert sizes(zero_stage=3)[1] == {}


def test_deepspeeds_buffer_has_one_size_on_a_gpu(sizes: Sizes) -> None:
    """On a CPU, pages that nothing is written to take no memory."""
    gpu = {"gpus_per_worker": 1, "precision": "bf16"}
    assert sizes(zero_stage=1, **gpu)[0]["buffers"] == 4 * 500_000_000
    assert sizes(zero_stage=2, **gpu)[0]["buffers"] == 2 * 500_000_000
    assert "buffers" not in sizes(zero_stage=0, **gpu)[0]


def test_frozen_parameters_have_weights_alone(task: Task, sizes: Sizes) -> None:
    task.requires_grad_(False)
    found = sizes(zero_stage=0)[0]
    assert found.pop("weights")
    assert set(found.values()) == {0}
