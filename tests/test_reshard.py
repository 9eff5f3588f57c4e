"""A checkpoint of any world size and ZeRO stage loads at any other, bit for bit.

Here a path through the matrix. `DIPTYCH_MATRIX=all pytest tests/test_reshard.py` takes all of it:
workers 1, 2, 4 and ZeRO 0 to 3, saved and loaded, in fp32 and bf16.
"""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from diptych.pretrain.checkpoint import EMA, WEIGHT, Checkpoint, open_checkpoint, steps
from diptych.pretrain.ema import Ema, average

KINDS = (WEIGHT, "exp_avg", "exp_avg_sq", EMA)
ALL = tuple(itertools.product((1, 2, 4), (0, 1, 2, 3)))
"""(workers, ZeRO stage)."""
SOME = {"fp32": ((1, 0), (2, 1), (2, 3), (4, 3)), "bf16": ((1, 0), (2, 2), (2, 3))}


@dataclass(frozen=True)
class Matrix:
    """Each machine trained two steps; then each took over all of them, and stepped once more."""

    place: Path
    precision: str
    machines: tuple[tuple[int, int], ...]
    said: list[list[float]]
    """The losses of each machine's steps, then those of each after taking over."""

    @property
    def saved(self) -> list[Checkpoint]:
        return [open_checkpoint(f"{self.place}/saved-{w}-{z}", 2) for w, z in self.machines]

    def loaded(self, by: int, number: int) -> Checkpoint:
        """What a machine stored right after it took over a checkpoint."""
        return open_checkpoint(f"{self.place}/loaded-{by}/{number}")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def matrix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    place = tmp_path_factory.mktemp("matrix")
    machines = ALL if os.environ.get("DIPTYCH_MATRIX") == "all" else SOME[request.param]
    runs = [f"{place}/saved-{workers}-{stage}" for workers, stage in machines]
    shapes: list[dict[str, Any]] = [
        {"workers": workers, "zero_stage": stage, "precision": request.param}
        for workers, stage in machines
    ]
    jobs: list[dict[str, Any]] = []
    for shape, run in zip(shapes, runs, strict=True):
        jobs.append({"do": "train", "shape": shape, "steps": 3, "theirs_at": 2, "out": run})
    for number, shape in enumerate(shapes):
        out = f"{place}/loaded-{number}"
        jobs.append({"do": "load", "shape": shape, "runs": runs, "step": 2, "out": out})
    return Matrix(place, request.param, machines, ranks.run(place, jobs))


def test_what_is_loaded_is_what_was_saved(matrix: Matrix) -> None:
    """Weights, moments and the average, tensor by tensor, from each machine to each."""
    for number, theirs in enumerate(matrix.saved):
        there = {kind: theirs.weights(kind) for kind in KINDS}
        for by in range(len(matrix.machines)):
            ours = matrix.loaded(by, number)
            assert ours.shapes == theirs.shapes
            assert ours.kinds == theirs.kinds == set(KINDS)
            assert ours.extra["optimiser_step"] == theirs.extra["optimiser_step"] == 2
            for kind in KINDS:
                for name, tensor in ours.weights(kind).items():
                    assert torch.equal(tensor, there[kind][name]), (by, number, kind, name)


def test_training_goes_on_from_it_as_if_nothing_had_happened(matrix: Matrix) -> None:
    """The third step's loss, whoever saved and whoever loaded; on the same machines, its bits."""
    count = len(matrix.machines)
    third = [losses[2] for losses in matrix.said[:count]]
    rough = 1e-5 if matrix.precision == "fp32" else 2e-2
    for by, losses in enumerate(matrix.said[count:]):
        assert losses == pytest.approx(third, rel=rough)
        assert losses[by] == third[by]


def test_the_average_is_that_of_a_single_process(matrix: Matrix) -> None:
    """Each run's own weights, whole, averaged in this process."""
    for checkpoint in matrix.saved:
        run = checkpoint.url.partition("/checkpoints/")[0]
        assert steps(run) == [0, 1, 2, 3]
        names, first = list(checkpoint.shapes), open_checkpoint(run, 0).weights()
        averages = [first[name] for name in names]
        for step in (0, 1):
            weights = open_checkpoint(run, step + 1).weights()
            average(Ema(decay=0.9), averages, [weights[name] for name in names], step)
        stored, raw = checkpoint.weights(EMA), checkpoint.weights()
        for name, tensor in zip(names, averages, strict=True):
            assert torch.equal(stored[name], tensor), name
        assert any(not torch.equal(stored[name], raw[name]) for name in names)


def test_each_element_is_stored_once_and_by_all_ranks(matrix: Matrix) -> None:
    for checkpoint in matrix.saved:
        elements = sum(torch.Size(found).numel() for found in checkpoint.shapes.values())
        assert sum(piece.length for piece in checkpoint.slices) == len(KINDS) * elements
        assert len({piece.file for piece in checkpoint.slices}) == checkpoint.extra["world"]
