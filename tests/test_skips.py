"""The loop alone, on an engine of one process that only counts: skipping, stopping, reporting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from diptych.config import plain
from diptych.data.batch import Batch
from diptych.errors import NonFiniteError
from diptych.finetune.parts import KINDS
from diptych.pretrain.loop import Doing, Listener, train
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Losses


@dataclass
class Counting:
    """An engine whose loss is the step, and infinite at some."""

    bad: set[int] = field(default_factory=set[int])
    others: float = 0.0
    """What the other ranks add to every sum."""
    saved: list[int] = field(default_factory=list[int])
    rank: int = 0
    at: int = 0

    def step(self, batch: Batch, lr: float) -> Losses:
        step, self.at = self.at, self.at + 1
        value = torch.tensor(float("inf") if step in self.bad else float(step))
        sums = {"mlm.loss": (value, torch.tensor(1))}
        return Losses(total=value, sums=sums, applied=step not in self.bad)

    def sum(self, values: list[float]) -> list[float]:
        return [value + self.others for value in values]

    def save_s(self) -> float:
        return 0.0

    def join(self) -> None:
        pass

    def save(self, step: int, *, wait: bool) -> None:
        self.saved.append(step)


class Ears(Listener):
    def __init__(self, stop_at: int = 10**9) -> None:
        self.stop_at = stop_at
        self.rows: list[dict[str, float]] = []
        self.bad: list[tuple[int, bool]] = []
        self.phases: list[tuple[str, int]] = []
        self.last = -1

    def told(self, step: int, batch: Batch) -> None:
        self.last = step

    def doing(self, what: Doing, step: int) -> None:
        self.phases.append((what, step))

    def skipped(self, step: int, batch: Batch, blame: bool) -> None:
        self.bad.append((step, blame))

    def report(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def stopping(self) -> bool:
        return self.last >= self.stop_at


@pytest.fixture
def run() -> Callable[..., Run]:
    def make(*settings: str) -> Run:
        values = plain(vlp_easy()) | {"name": "loop", "batch": 2, "steps": 12}
        values |= {"log_steps": 2, "checkpoint_steps": 4}
        values["data"] = {"train": "/nowhere", "tokenizer": "/nowhere/tokenizer.json"}
        return revise(values, list(settings), KINDS, source="loop")

    return make


def batches(run: Run) -> Iterator[tuple[int, Batch]]:
    for step in range(run.steps):
        none: Any = torch.zeros(2, 1)
        yield (
            step,
            Batch(
                keys=(f"a.tar/{2 * step}", f"a.tar/{2 * step + 1}"),
                draws_B=none,
                image_BCHW=none,
                tokens_BL=none,
                real_BL=none,
                fields=({}, {}),
            ),
        )


def test_a_calm_run_reports_and_saves(run: Callable[..., Run]) -> None:
    engine, ears = Counting(), Ears()
    assert train(engine, batches(run()), run(), ears) == 12
    assert engine.saved == [4, 8, 12]
    assert [row["step"] for row in ears.rows] == [2, 4, 6, 8, 10, 12]
    assert [row["mlm.loss"] for row in ears.rows] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert {row["skipped"] for row in ears.rows} == {0}
    assert ears.phases[:6] == [
        ("step", 0),
        ("data", 1),
        ("step", 1),
        ("data", 2),
        ("step", 2),
        ("data", 3),
    ]
    assert ("save", 3) in ears.phases


def test_a_step_that_is_not_finite_is_counted_and_left_out(run: Callable[..., Run]) -> None:
    engine, ears = Counting(bad={4, 7}), Ears()
    assert train(engine, batches(run()), run(), ears) == 12
    assert ears.bad == [(4, True), (7, True)]
    assert [row["skipped"] for row in ears.rows] == [0, 0, 1, 1, 0, 0]
    assert [row["mlm.loss"] for row in ears.rows][2:4] == [5.0, 6.0]
    assert engine.saved == [4, 12]  # not 8: whoever goes back must land before the bad steps


def test_a_report_of_nothing_but_skipped_steps_has_no_losses(run: Callable[..., Run]) -> None:
    ears = Ears()
    train(Counting(bad={4, 5}), batches(run()), run(), ears)
    assert "mlm.loss" not in ears.rows[2]
    assert ears.rows[2]["skipped"] == 2


def test_another_ranks_loss_is_not_blamed_on_this_one(run: Callable[..., Run]) -> None:
    class Elsewhere(Counting):
        def step(self, batch: Batch, lr: float) -> Losses:
            losses = super().step(batch, lr)
            return Losses(total=torch.zeros(()), sums=losses.sums, applied=losses.applied)

        def sum(self, values: list[float]) -> list[float]:
            return [values[0] + 1] if len(values) == 1 else [*values[:-2], 0.0, values[-1]]

    ears = Ears()
    train(Elsewhere(bad={4}), batches(run("log_steps=1")), run("log_steps=1"), ears)
    assert ears.bad == [(4, False)]


def test_too_many_in_a_row_end_it_with_the_steps(run: Callable[..., Run]) -> None:
    engine, ears = Counting(bad={2, 5, 6, 7}), Ears()
    with pytest.raises(NonFiniteError, match=r"3 steps in a row, 5 to 7"):
        train(engine, batches(run()), run(), ears)
    assert engine.saved == [4]
    with pytest.raises(NonFiniteError, match=r"1 steps in a row, 2 to 2"):
        train(Counting(bad={2}), batches(run()), run("optim.skip_limit=1"), Ears())


def test_a_wish_to_stop_is_heard_at_the_next_report(run: Callable[..., Run]) -> None:
    engine, ears = Counting(), Ears(stop_at=4)
    assert train(engine, batches(run()), run(), ears) == 6
    assert engine.saved == [4, 6]


def test_where_steps_are_slow_a_wish_is_heard_between_reports(run: Callable[..., Run]) -> None:
    calls: list[int] = []

    class Slow(Counting):
        def sum(self, values: list[float]) -> list[float]:
            calls.append(len(values))
            return [5.0] if len(calls) == 1 else super().sum(values)  # the first asks for seconds

    engine, ears = Slow(), Ears(stop_at=4)
    recipe = run("log_steps=12", "checkpoint_steps=12")
    assert train(engine, batches(recipe), recipe, ears) == 5
    assert engine.saved == [5]
    assert [row["step"] for row in ears.rows] == [5]
    assert ears.rows[0]["mlm.loss"] == 2.0
