"""The moving average: its formula, its ramp, and who uses it. Under ZeRO: test_reshard.py."""

from collections.abc import Callable

import pytest
import torch

from diptych.config import digest
from diptych.data import storage
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, RecipeError
from diptych.finetune.start import fresh_task, trained_task
from diptych.pretrain.checkpoint import EMA, WEIGHT, commit, folder, open_checkpoint
from diptych.pretrain.ema import Ema, average
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.slices import put_slices

Small = Callable[..., Run]


def test_it_is_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    start, weights = torch.randn(1000, generator=draw), torch.randn(1000, generator=draw)
    averages = [start[:300].clone(), start[300:].clone()]
    for step in range(20):
        average(Ema(decay=0.9, warmup=False), averages, [weights[:300], weights[300:]], step)
    exact = 0.9**20 * start.double() + (1 - 0.9**20) * weights.double()
    assert torch.allclose(torch.cat(averages).double(), exact, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 7, 500, 999])
def test_any_cut_gives_the_same_bits(cut: int) -> None:
    draw = torch.Generator().manual_seed(0)
    start, weights = torch.randn(1000, generator=draw), torch.randn(1000, generator=draw)
    whole, parts = [start.clone()], [start[:cut].clone(), start[cut:].clone()]
    for step in range(5):
        average(Ema(), whole, [weights], step)
        average(Ema(), parts, [weights[:cut], weights[cut:]], step)
    assert torch.equal(torch.cat(parts), whole[0])


def test_the_decay_ramps_up() -> None:
    ramp = [Ema(decay=0.99).decay_at(step) for step in range(2000)]
    assert ramp[0] == 0.1
    assert ramp == sorted(ramp)
    assert ramp[-1] == 0.99
    assert Ema(decay=0.99, warmup=False).decay_at(0) == 0.99


def test_nothing_to_average_is_no_fault() -> None:
    average(Ema(), [], [], 0)


def test_a_recipe_asks_for_it(small: Small) -> None:
    assert small().ema is None
    assert small("ema.decay=0.99").ema == Ema(decay=0.99)
    for setting in ("ema.decay=1", "ema.decay=0", "ema.dekay=0.9"):
        with pytest.raises(RecipeError, match="ema"):
            small(setting)


@pytest.fixture
def place(small: Small, text: Text, keep: Callable[..., RunDir]) -> RunDir:
    """A run whose average is half of its weights."""
    run = small()
    place = keep(run, fresh_task(run, text), text, 3)
    named = list(fresh_task(run, text).named_parameters())
    pieces = [(name, WEIGHT, 0, p.detach().view(-1)) for name, p in named]
    pieces += [(name, EMA, 0, p.detach().view(-1) / 2) for name, p in named]
    found = put_slices(folder(place.url, 6), "attempt-1/rank-0.safetensors", pieces)
    shapes = {name: tuple(p.shape) for name, p in named}
    commit(place.url, 6, recipe=digest(run), shapes=shapes, slices=found, extra={})
    return place


def test_evaluation_takes_the_average_unless_told(place: RunDir, small: Small, text: Text) -> None:
    run, found = small(), open_checkpoint(place.url)
    raw = trained_task(run, text, found, "raw").state_dict()
    for weights in (None, "ema"):
        for name, tensor in trained_task(run, text, found, weights).state_dict().items():
            assert torch.equal(tensor, raw[name] / 2), name


def test_a_run_without_one_gives_its_weights(place: RunDir, small: Small, text: Text) -> None:
    found = open_checkpoint(place.url, 3)
    there = found.weights()
    for name, tensor in trained_task(small(), text, found).state_dict().items():
        assert torch.equal(tensor, there[name])
    with pytest.raises(CheckpointError, match=r"no moving average\. Say --weights raw"):
        trained_task(small(), text, found, "ema")
    assert storage.name(found.url) == "00000003"
