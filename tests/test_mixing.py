"""Objectives that take turns: by their shares, the same at any world size and after a restart."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from diptych.config import from_yaml, to_yaml
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.parts import KINDS
from diptych.pretrain.mixing import mixing
from diptych.pretrain.run import Run, parse_run

TURNS = "mixing={mlm: 2, mrm: 1, itm: 1}"


def test_shares_are_kept_and_steps_decide() -> None:
    found = mixing(3, {"mlm": 2, "mrm": 1, "itm+wra": 1}, ["itm", "mrm", "mlm", "wra"])
    assert found is not None
    turns = [found.at(step) for step in range(4000)]
    assert turns == [found.at(step) for step in range(4000)]
    counts = Counter(turns)
    assert set(counts) == {("mlm",), ("mrm",), ("itm", "wra")}
    assert counts["mlm",] == pytest.approx(2000, abs=100)
    assert counts["itm", "wra"] == pytest.approx(1000, abs=90)
    other = mixing(4, {"mlm": 2, "mrm": 1, "itm+wra": 1}, ["itm", "mrm", "mlm", "wra"])
    assert other is not None and [other.at(step) for step in range(4000)] != turns


def test_only_those_whose_turn_it_is_are_scored(
    small: Callable[..., Run], text: Text, rows: Callable[[int], Batch]
) -> None:
    run, batch = small(TURNS), rows(16)
    task = run.task(text)
    assert task.mixing is not None
    for step in range(12):
        [kind] = task.mixing.at(step)
        losses = task(replace(batch, step=step))
        assert set(losses.sums) == {f"{kind}.loss", f"{kind}.accuracy"}
        alone = run.model_copy(update={"mixing": {}, "objectives": task._named([kind])}).task(text)
        state = {name: value for name, value in task.state_dict().items()}
        alone.load_state_dict({name: state[name] for name in alone.state_dict()})
        assert torch.equal(alone(batch).total, losses.total)
    every = task(batch)
    assert {name.split(".")[0] for name in every.sums} == {"itm", "mrm", "mlm"}


def test_a_recipe_says_it(small: Callable[..., Run]) -> None:
    run = small(TURNS)
    assert parse_run(from_yaml(to_yaml(run), source="yaml"), KINDS, source="yaml") == run
    assert small(TURNS, "mixing.mlm=5").mixing["mlm"] == 5
    for wrong, said in (
        ("mixing={mlm: 1, mrm: 1, itn: 1}", "'itn'; the objectives are itm, mrm, mlm"),
        ("mixing={mlm: 1, mrm: 1}", "leaves out 'itm'"),
        ("mixing={mlm: 1, mrm: 0, itm: 1}", "not above 0"),
    ):
        with pytest.raises(RecipeError, match=said):
            small(wrong)


def test_turns_are_the_same_for_any_ranks_and_after_a_restart(tmp_path: Path) -> None:
    """Packed, too: one rank and two, without ZeRO and with all of it, and over to each other."""
    recipe: dict[str, Any] = {
        "seed": 6,
        "mixing": {"mlm": 1, "mrm": 1, "itm": 1},
        "model": {
            "kind": "vlp",
            "tokens": 4,
            "packed": True,
            "width": 12,
            "depth": 1,
            "heads": 2,
            "grid": 2,
            "stem": 4,
            "image_size": 8,
        },
    }
    machines = ((1, 0), (2, 0), (2, 1), (2, 3))
    job: dict[str, Any] = {"recipe": recipe, "short": True}
    jobs: list[dict[str, Any]] = []
    for workers, stage in machines:
        shape = {"workers": workers, "zero_stage": stage, "precision": "fp32"}
        out = f"{tmp_path}/{workers}-{stage}"
        jobs.append({**job, "do": "train", "shape": shape, "steps": 5, "out": out})
    there = [each["out"] for each in jobs]
    for (workers, stage), runs in (((2, 3), there[:1]), ((1, 0), there[2:])):
        shape = {"workers": workers, "zero_stage": stage, "precision": "fp32"}
        out = f"{tmp_path}/on-{workers}"
        jobs.append({**job, "do": "load", "shape": shape, "runs": runs, "step": 3, "out": out})
    turns = mixing(6, recipe["mixing"], ["itm", "mrm", "mlm"])
    assert turns is not None and len({turns.at(step) for step in range(4)}) == 3
    first, *others, two, one = ranks.run(tmp_path, jobs)
    assert all(losses == pytest.approx(first, rel=2e-5) for losses in others)
    assert [*two, *one] == pytest.approx([first[3]] * 3, rel=2e-5)
