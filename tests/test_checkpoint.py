"""The format of a checkpoint: any cut reads back at any other, and any damage is named."""

import itertools
import json
import math
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.data import storage
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, DiptychError
from diptych.finetune.start import start
from diptych.pretrain.checkpoint import (
    WEIGHT,
    Checkpoint,
    commit,
    folder,
    open_checkpoint,
    sealed,
    steps,
)
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.slices import Slice, put_slices
from diptych.pretrain.task import Task

Keep = Callable[..., RunDir]
Small = Callable[..., Run]
SHAPES: dict[str, tuple[int, ...]] = {"model.words": (7, 3), "model.bias": (5,), "model.scale": ()}
KINDS = (WEIGHT, "exp_avg", "exp_avg_sq")


def made(name: str, kind: str) -> Tensor:
    """The flat tensor that stands for a parameter or moment: all numbers differ."""
    count = math.prod(SHAPES[name])
    return torch.arange(count) + 100.0 * list(SHAPES).index(name) + 1000.0 * KINDS.index(kind)


def written(run: str, cuts: dict[str, list[int]], ranks: int, draw: random.Random) -> Checkpoint:
    """A checkpoint whose parameters are cut at `cuts` and dealt to some ranks' files."""
    dealt: list[list[tuple[str, str, int, Tensor]]] = [[] for _ in range(ranks)]
    for name, shape in SHAPES.items():
        for kind in KINDS:
            whole = made(name, kind)
            edges = [0, *sorted({cut % (math.prod(shape) + 1) for cut in cuts[name]}), len(whole)]
            for first, last in itertools.pairwise(edges):
                file = next(f for f in draw.sample(dealt, ranks) if not known(f, name, kind))
                file.append((name, kind, first, whole[first:last]))
    found: list[Slice] = []
    for rank, pieces in enumerate(dealt):
        found += put_slices(folder(run, 4), f"attempt-1/rank-{rank}.safetensors", pieces)
    draw.shuffle(found)
    commit(run, 4, recipe="r", shapes=SHAPES, slices=found, extra={"world": ranks})
    return open_checkpoint(run)


def known(pieces: list[tuple[str, str, int, Tensor]], name: str, kind: str) -> bool:
    """A rank's file holds at most one slice of a parameter."""
    return (name, kind) in {piece[:2] for piece in pieces}


CUTS = st.fixed_dictionaries({name: st.lists(st.integers(0, 30), max_size=3) for name in SHAPES})


@settings(max_examples=40)
@given(cuts=CUTS, seed=st.integers(0, 99), asked=st.data())
def test_any_cut_reads_back_at_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: dict[str, list[int]],
    seed: int,
    asked: st.DataObject,
) -> None:
    run = storage.absolute(str(tmp_path_factory.mktemp("cuts")))
    found = written(run, cuts, ranks=5, draw=random.Random(seed))
    assert (found.step, found.recipe, found.extra) == (4, "r", {"world": 5})
    for name, shape in SHAPES.items():
        for kind in KINDS:
            whole = made(name, kind)
            assert torch.equal(found.read(name, kind), whole)
            first = asked.draw(st.integers(0, math.prod(shape)))
            length = asked.draw(st.integers(0, math.prod(shape) - first))
            part = found.read(name, kind, first, length)
            assert torch.equal(part, whole[first : first + length])
            assert torch.equal(found.read(name, kind, first), whole[first:])
    weights = found.weights()
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == SHAPES
    assert torch.equal(weights["model.words"].flatten(), made("model.words", WEIGHT))


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.0, 1e-45, 3.4028235e38])
def test_every_bit_comes_back(tmp_path: Path, value: float) -> None:
    run, data = str(tmp_path), torch.tensor([1.0, value])
    pieces = put_slices(folder(run, 1), "rank-0.safetensors", [("w", WEIGHT, 0, data)])
    commit(run, 1, recipe="r", shapes={"w": (2,)}, slices=pieces, extra={})
    found = open_checkpoint(run).read("w", WEIGHT)
    assert found.numpy().tobytes() == data.numpy().tobytes()


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with one good checkpoint in three files, after step 4."""
    url = storage.absolute(str(tmp_path / "run"))
    cuts = {"model.words": [4, 9], "model.bias": [2], "model.scale": []}
    written(url, cuts, ranks=3, draw=random.Random(0))
    return url


def files(run: str) -> list[Path]:
    return sorted(storage.local_path(folder(run, 4)).rglob("*.safetensors"))


def manifest(run: str) -> Path:
    return storage.local_path(folder(run, 4)) / "manifest.json"


def edit(run: str, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads(manifest(run).read_text())
    change(body)
    manifest(run).write_text(json.dumps(sealed(body)))


def everything(run: str) -> dict[tuple[str, str], Tensor]:
    found = open_checkpoint(run)
    assert {name: tuple(shape) for name, shape in found.shapes.items()} == SHAPES
    return {(name, kind): found.read(name, kind) for name in SHAPES for kind in KINDS}


def refused(run: str, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        everything(run)
    for part in parts:
        assert part in str(caught.value)


def test_a_damaged_byte_is_named(run: str) -> None:
    """Every byte of the data of every file, one at a time."""
    for file in files(run):
        good = file.read_bytes()
        head = 8 + int.from_bytes(good[:8], "little")
        for place in range(head, len(good)):
            bad = bytearray(good)
            bad[place] ^= 1 << place % 8
            file.write_bytes(bad)
            refused(run, f"attempt-1/{file.name} is damaged at byte ", "crc32", "Restore it")
        file.write_bytes(good)
    assert len(everything(run)) == 9


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_or_short_file_is_named(run: str, number: int) -> None:
    file = files(run)[number]
    good = file.read_bytes()
    for left in (len(good) - 1, 9, 0):
        file.write_bytes(good[:left])
        refused(run, f"attempt-1/{file.name} is missing or cut short", "older checkpoint")
    file.unlink()
    refused(run, f"attempt-1/{file.name} is missing or cut short", run)


def test_a_file_of_another_attempt_is_found_out(run: str) -> None:
    one, two, _ = files(run)
    size = max(one.stat().st_size, two.stat().st_size)
    one.write_bytes(two.read_bytes().ljust(size, b"\0"))
    refused(run, f"attempt-1/{one.name} is damaged")


def test_a_missing_slice_leaves_a_hole(run: str) -> None:
    rows = json.loads(manifest(run).read_text())["slices"]
    for number, row in enumerate(rows):
        edit(run, lambda body, n=number: body.update(slices=[*rows[:n], *rows[n + 1 :]]))
        if row[3]:
            refused(run, folder(run, 4), f"{row[1]} of '{row[0]}' has ", "without a gap")


def test_a_slice_that_stands_twice_does_not_fill_a_hole(run: str) -> None:
    """Seven elements counted twice and seven never: the number is right, the tensor is not."""
    rows = json.loads(manifest(run).read_text())["slices"]
    ours = [row for row in rows if row[:2] == ["model.words", WEIGHT]]
    others = [row for row in rows if row not in ours]
    whole = torch.arange(21.0)
    pieces = put_slices(
        folder(run, 4), "twice.safetensors", [("model.words", WEIGHT, 0, whole[:7])]
    )
    row = [getattr(pieces[0], name) for name in Slice.__slots__]
    edit(run, lambda body: body.update(slices=[*others, row, row, row]))
    refused(run, "weight of 'model.words' has 7 of 21 elements")


def test_no_manifest_is_no_checkpoint(run: str) -> None:
    assert steps(run) == [4]
    manifest(run).unlink()
    assert steps(run) == []
    with pytest.raises(CheckpointError, match=r"run has no complete checkpoint\. .* none"):
        open_checkpoint(run)


def test_a_step_that_was_not_kept_is_named_with_those_that_were(run: str) -> None:
    with pytest.raises(CheckpointError, match=r"no complete checkpoint 7\. Complete are: \[4\]"):
        open_checkpoint(run, 7)
    assert open_checkpoint(run, 4).step == open_checkpoint(run).step == 4


def test_the_newest_complete_one_counts(run: str) -> None:
    for step in (2, 10, 30):
        commit(run, step, recipe="r", shapes={}, slices=[], extra={})
    (storage.local_path(run) / "checkpoints/00000030/manifest.json").unlink()
    (storage.local_path(run) / "checkpoints/notes").mkdir()
    assert steps(run) == [2, 4, 10]
    assert open_checkpoint(run).step == 10


@pytest.mark.parametrize("form", [0, 2, "1", None])
def test_a_foreign_format_is_named(run: str, form: Any) -> None:
    edit(run, lambda body: body.update(format=form))
    refused(run, folder(run, 4), f"format {form}, this Diptych reads 1")


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"{",
        b"\x80\x04\x95",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "step": 4, "recipe": "r", "extra": {}, "shapes": [], "slices": []}',
        b'{"format": 1, "step": 4, "recipe": "r", "extra": {}, "shapes": {"a": 3}, "slices": []}',
        b'{"format": 1, "step": 4, "recipe": "r", "extra": {}, "shapes": {}, "slices": [[1]]}',
        b'{"format": 1, "step": 4, "recipe": "r", "extra": {}, "shapes": {}, "slices": 5}',
        b"[" * 100_000,
    ],
    ids=range(14),
)
def test_a_manifest_that_is_none_is_named(run: str, blob: bytes) -> None:
    manifest(run).write_bytes(blob)
    refused(run, "manifest.json is damaged", folder(run, 4))


def test_no_damage_of_the_manifest_changes_a_number(run: str) -> None:
    """A bit of every byte: what still reads, reads the same; the rest is one of our errors."""
    good, expected, whole = manifest(run).read_bytes(), everything(run), open_checkpoint(run)
    told = (whole.step, whole.recipe, whole.base, whole.extra)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= (1, 2, 16)[place % 3]
        manifest(run).write_bytes(bad)
        try:
            found = open_checkpoint(run)
            values = {key: found.read(*key) for key in expected}
        except DiptychError as err:
            assert run in str(err)
        else:
            assert all(torch.equal(values[key], expected[key]) for key in expected), place
            assert (found.step, found.recipe, found.base, found.extra) == told, place


def test_another_model_is_named(keep: Keep, small: Small, text: Text) -> None:
    run = small()
    task: Task = run.task(text)
    found = open_checkpoint(keep(run, task, text).url)
    with pytest.raises(CheckpointError, match=r"has no parameter 'model\.eyes'; another model"):
        found.read("model.eyes", WEIGHT)
    for setting in ("model.width=32", "model.depth=2", "model.grid=2"):
        with pytest.raises(CheckpointError, match=r"does not fit the model: model\..* same model"):
            start(small(setting).task(text), found)


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(run: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    blob = pickle.dumps(Canary(canary))
    for file in files(run):
        file.write_bytes(blob.ljust(file.stat().st_size, b"\0"))
    for name in ("optimizer.pt", "pytorch_model.bin", "state.pkl"):
        (files(run)[0].parent / name).write_bytes(blob)
    refused(run, "is damaged")
    manifest(run).write_bytes(blob)
    refused(run, "manifest.json is damaged")
    assert not canary.exists()
    pickle.loads(blob)
    assert canary.exists()  # it would have sung
