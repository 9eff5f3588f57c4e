"""The schedule at its edges, and which parameters decay."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diptych.data.tokens import Text
from diptych.pretrain.optim import adamw, groups, lr_at
from diptych.pretrain.run import Optim, Run

DECAYS = ("linear", "cosine", "none")


def schedule(steps: int, **values: object) -> list[float]:
    optim = Optim.model_validate({"lr": 2.0, **values})
    return [lr_at(optim, step, steps) for step in range(steps)]


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_begins_above_zero_and_ends_at_the_peak(decay: str) -> None:
    found = schedule(20, warmup_steps=4, decay=decay)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4] == 2.0  # the first step of the decay is still the peak


@pytest.mark.parametrize("decay", DECAYS)
def test_no_warm_up_begins_at_the_peak(decay: str) -> None:
    assert schedule(10, warmup_steps=0, decay=decay)[0] == 2.0
    assert schedule(1, warmup_steps=0, decay=decay) == [2.0]


def test_linear() -> None:
    assert schedule(14, warmup_steps=4, decay="linear")[4:] == pytest.approx(
        [2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_cosine() -> None:
    found = schedule(14, warmup_steps=4, decay="cosine")
    assert found[9] == pytest.approx(1.0)  # half way
    assert found[4:] == pytest.approx([1 + math.cos(math.pi * n / 10) for n in range(10)])
    assert found[13] == pytest.approx(0.0489, abs=1e-4)


def test_none_stays() -> None:
    assert schedule(12, warmup_steps=2, decay="none")[1:] == [2.0] * 11


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_last_step_still_learns_and_the_one_after_would_not(decay: str) -> None:
    optim = Optim.model_validate({"lr": 2.0, "warmup_steps": 3, "decay": decay})
    assert lr_at(optim, 99, 100) > 0
    assert lr_at(optim, 100, 100) == pytest.approx(0, abs=1e-12)
    assert lr_at(optim, 500, 100) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup_steps", [5, 6, 1000])
def test_a_run_no_longer_than_its_warm_up_only_warms_up(decay: str, warmup_steps: int) -> None:
    found = schedule(5, warmup_steps=warmup_steps, decay=decay)
    assert found == pytest.approx([2.0 * (step + 1) / warmup_steps for step in range(5)])


@given(decay=st.sampled_from(DECAYS), warmup_steps=st.integers(0, 60), steps=st.integers(1, 60))
def test_it_rises_then_falls_and_never_leaves_its_range(
    decay: str, warmup_steps: int, steps: int
) -> None:
    found = schedule(steps, warmup_steps=warmup_steps, decay=decay)
    assert all(0 < value <= 2.0 for value in found)
    up, down = found[:warmup_steps], found[warmup_steps:]
    assert all(a < b for a, b in itertools.pairwise(up))
    assert all(a >= b for a, b in itertools.pairwise(down))


class Odd(nn.Module):
    """Every kind of parameter: matrix, convolution, bias, norm, scalar, frozen, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.convolve, self.words = nn.Conv2d(1, 2, 3), nn.Embedding(5, 3)
        self.scale, self.hole = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = Odd()
    names = {id(p): name for name, p in module.named_parameters()}
    found = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}  # pyright: ignore
        for group in groups(module, Optim(weight_decay=0.1))
    }
    assert found == {
        0.1: {"linear.weight", "convolve.weight", "words.weight"},
        0.0: {"linear.bias", "norm.weight", "norm.bias", "convolve.bias", "scale", "hole"},
    }


def test_every_trained_parameter_is_in_one_group(small: Callable[..., Run], text: Text) -> None:
    task = small().task(text)
    listed = [id(p) for group in adamw(task, Optim()).param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in task.parameters())


def test_decay_shrinks_matrices_alone() -> None:
    """One step of AdamW without gradients: what moves, moves by decay."""
    module = Odd()
    optimiser = adamw(module, Optim(lr=0.5, weight_decay=0.1))
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser.step()
    for name, parameter in module.named_parameters():
        shrunk = 0.95 if name in ("linear.weight", "convolve.weight", "words.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * shrunk, msg=name)


def test_the_betas_are_the_recipes() -> None:
    assert adamw(Odd(), Optim(betas=(0.5, 0.75))).defaults["betas"] == (0.5, 0.75)
