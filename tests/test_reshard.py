"""A checkpoint of any world size and ZeRO stage loads at any other, bit for bit.

Here a path through the matrix; `python benchmarks/reshard.py` goes through all of it.
"""

from pathlib import Path

import pytest
import ranks
import torch

from diptych.pretrain.checkpoint import EMA, WEIGHT, Checkpoint, open_checkpoint, steps
from diptych.pretrain.ema import Ema, average

KINDS = (WEIGHT, "exp_avg", "exp_avg_sq", EMA)
SOME = [(1, 0), (2, 3), (2, 1), (4, 3)]
"""(workers, ZeRO stage)."""


def shape(workers: int, stage: int, **more: object) -> dict[str, object]:
    return {"workers": workers, "zero_stage": stage, **more}


def same(ours: Checkpoint, theirs: Checkpoint) -> None:
    assert ours.shapes == theirs.shapes
    assert ours.kinds == theirs.kinds == set(KINDS)
    assert ours.extra["optimiser_step"] == theirs.extra["optimiser_step"] == 2
    for kind in KINDS:
        there = theirs.weights(kind)
        for name, tensor in ours.weights(kind).items():
            assert torch.equal(tensor, there[name]), (kind, name)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    """Each of `SOME` trained two steps; then each took over all of them, and stepped once more."""
    place = tmp_path_factory.mktemp("matrix")
    runs = [f"{place}/saved/{workers}-{stage}" for workers, stage in SOME]
    saved = [
        {"do": "train", "shape": shape(*one), "steps": 3 if stage == 0 else 2, "out": run}
        | ({"theirs": f"{run}-theirs"} if one[1] else {})
        for one, run in zip(SOME, runs, strict=True)
        for stage in [one[1]]
    ]
    loaded = [
        {"do": "load", "shape": shape(*one), "runs": runs, "step": 2, "out": f"{place}/loaded/{n}"}
        for n, one in enumerate(SOME)
    ]
    return place, ranks.run(place, [*saved, *loaded])


def saved(matrix: tuple[Path, list[list[float]]]) -> list[Checkpoint]:
    names = [f"{matrix[0]}/saved/{workers}-{stage}" for workers, stage in SOME]
    return [open_checkpoint(name, 2) for name in names]


@pytest.mark.parametrize("into", range(len(SOME)), ids=[f"to {w}x zero{z}" for w, z in SOME])
@pytest.mark.parametrize("of", range(len(SOME)), ids=[f"from {w}x zero{z}" for w, z in SOME])
def test_what_is_loaded_is_what_was_saved(
    of: int, into: int, matrix: tuple[Path, list[list[float]]]
) -> None:
    same(open_checkpoint(f"{matrix[0]}/loaded/{into}/{of}"), saved(matrix)[of])


def test_training_goes_on_from_it_as_if_nothing_had_happened(
    matrix: tuple[Path, list[list[float]]],
) -> None:
    """The third step's loss, whoever saved and whoever loaded."""
    third = matrix[1][0][2]
    assert [len(losses) for losses in matrix[1]] == [3, 2, 2, 2, 4, 4, 4, 4]
    for losses in matrix[1][4:]:
        assert losses == pytest.approx([third] * 4, rel=1e-5)
    assert matrix[1][4][0] == third  # the same machines: the same bits


def test_the_average_is_that_of_a_single_process(
    matrix: tuple[Path, list[list[float]]],
) -> None:
    """Of each run's own weights, held against all of them averaged in this process."""
    for checkpoint in saved(matrix):
        run = checkpoint.url.partition("/checkpoints/")[0]
        assert steps(run)[:3] == [0, 1, 2]
        names, first = list(checkpoint.shapes), open_checkpoint(run, 0).weights()
        averages = [first[name] for name in names]
        for step in (0, 1):
            weights = open_checkpoint(run, step + 1).weights()
            average(Ema(decay=0.9), averages, [weights[name] for name in names], step)
        stored = checkpoint.weights(EMA)
        for name, tensor in zip(names, averages, strict=True):
            assert torch.equal(stored[name], tensor), name
            assert not torch.equal(stored[name], checkpoint.read(name, WEIGHT).view_as(tensor))


def test_each_element_is_stored_once(matrix: tuple[Path, list[list[float]]]) -> None:
    for checkpoint in saved(matrix):
        elements = sum(torch.Size(found).numel() for found in checkpoint.shapes.values())
        assert sum(piece.length for piece in checkpoint.slices) == len(KINDS) * elements
        assert len({piece.file for piece in checkpoint.slices}) == checkpoint.extra["world"]
