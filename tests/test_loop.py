"""The loop with a real task and optimiser in this process: what it reports, keeps and stops at."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
import torch

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.pretrain import loop
from diptych.pretrain.loop import Engine, Listener, train
from diptych.pretrain.optim import adamw, lr_at
from diptych.pretrain.run import Run
from diptych.pretrain.task import Losses, Task

Small = Callable[..., Run]
Rows = Callable[..., Batch]
Row = dict[str, float]


class Here:
    """`loop.Engine` in this process; `log` holds everything that it was asked, in order."""

    def __init__(self, task: Task, run: Run, rank: int = 0) -> None:
        self.rank, self.task = rank, task
        self.optimiser = adamw(task, run.optim)
        self.log: list[tuple[Any, ...]] = []
        self.losses: list[Losses] = []
        self.others: Iterator[list[float]] | None = None
        """What the other ranks bring to each sum; none by default."""
        self.needs_s = 0.0

    def step(self, batch: Batch, lr: float) -> Losses:
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        losses = self.task(batch)
        self.optimiser.zero_grad()
        losses.total.backward()
        self.optimiser.step()
        self.log.append(("step", batch.keys, lr))
        self.losses.append(losses)
        return losses

    def sum(self, values: list[float]) -> list[float]:
        self.log.append(("sum", values))
        others = next(self.others) if self.others else [0.0] * len(values)
        return [ours + theirs for ours, theirs in zip(values, others, strict=True)]

    def save_s(self) -> float:
        return self.needs_s

    def join(self) -> None:
        self.log.append(("join",))

    def save(self, step: int, *, wait: bool) -> None:
        self.log.append(("save", step, wait))

    def asked(self, what: str) -> list[tuple[Any, ...]]:
        """What it was asked of one sort, without the sort."""
        return [entry[1:] for entry in self.log if entry[0] == what]


@pytest.fixture
def engine(small: Small, text: Text) -> Callable[..., Here]:
    """`engine(run)`: a task, always initialised alike."""

    def make(run: Run, rank: int = 0) -> Here:
        torch.manual_seed(0)
        return Here(run.task(text), run, rank)

    return make


def short(small: Small, *settings: str) -> Run:
    return small("steps=7", "log_steps=3", "checkpoint_steps=3", "optim.warmup_steps=2", *settings)


def dealt(rows: Rows, first: int, last: int, start: int = 0) -> Iterator[tuple[int, Batch]]:
    """Batches of eight rows for steps [first, last); `start` chooses other rows."""
    return ((step, rows(8, start + 8 * (step % 4))) for step in range(first, last))


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wish to stop is heard at reports alone, however slow the machine."""
    monkeypatch.setattr(loop, "_HEAR_S", 1e9)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Engines = Callable[..., Here]


class Ears(Listener):
    """Keeps the rows; the rest is given as functions."""

    def __init__(self, told: Any = None, stopping: Any = None, left_s: float = inf) -> None:
        self.rows: list[Row] = []
        self._told, self._stopping, self._left_s = told, stopping, left_s

    def told(self, step: int, batch: Batch) -> None:
        if self._told:
            self._told(step, batch)

    def report(self, row: Row) -> None:
        self.rows.append(row)

    def stopping(self) -> bool:
        return bool(self._stopping and self._stopping())

    def left_s(self) -> float:
        return self._left_s


def go(engine: Engine, batches: Any, run: Run, **more: Any) -> tuple[int, list[Row]]:
    """(steps done, rows reported without the clock)."""
    ears = Ears(**more)
    done = train(engine, batches, run, ears)
    assert all(row.pop("seconds") >= 0 for row in ears.rows)
    assert {row.pop("skipped") for row in ears.rows} <= {0}
    return done, ears.rows


def test_it_reports_at_log_steps_and_at_the_last(small: Small, rows: Rows, engine: Engines) -> None:
    run = short(small)
    here = engine(run)
    done, found = go(here, dealt(rows, 0, 7), run)
    assert done == 7
    assert [row["step"] for row in found] == [3, 6, 7]
    assert [row["lr"] for row in found] == [lr_at(run.optim, step, 7) for step in (2, 5, 6)]
    assert [lr for _, lr in here.asked("step")] == [lr_at(run.optim, s, 7) for s in range(7)]


def test_a_report_is_the_mean_over_its_own_steps(small: Small, rows: Rows, engine: Engines) -> None:
    """Sums over counts of the steps since the last report; never a mean of means."""
    run = short(small)
    here = engine(run)
    _, found = go(here, dealt(rows, 0, 7), run)
    for row, (first, last) in zip(found, [(0, 3), (3, 6), (6, 7)], strict=True):
        part = here.losses[first:last]
        for name in part[0].sums:
            total = sum(float(each.sums[name][0]) for each in part)
            count = sum(int(each.sums[name][1]) for each in part)
            assert row[name] == pytest.approx(total / count), (name, first)
    names = {f"{kind}.{what}" for kind in ("itm", "mrm", "mlm") for what in ("loss", "accuracy")}
    assert set(found[0]) == names | {"step", "lr", "tokens", "fill"}


def test_a_report_is_the_mean_over_all_ranks(small: Small, rows: Rows, engine: Engines) -> None:
    run = short(small)
    one, two = engine(run), engine(run, 1)
    go(one, dealt(rows, 0, 7), run)
    told = [values for (values,) in one.asked("sum")]
    two.others = iter(told)
    _, found = go(two, dealt(rows, 0, 7, start=50), run)
    for row, (first, last) in zip(found, [(0, 3), (3, 6), (6, 7)], strict=True):
        part = one.losses[first:last] + two.losses[first:last]
        for name in part[0].sums:
            total = sum(float(each.sums[name][0]) for each in part)
            count = sum(int(each.sums[name][1]) for each in part)
            assert row[name] == pytest.approx(total / count), (name, first)


def test_what_was_never_tried_is_not_reported(small: Small, rows: Rows, engine: Engines) -> None:
    """Rows whose answer is not in the vocabulary have no loss; dividing by none is no number."""
    run = short(small, "objectives=[{kind: vqa, answers: [maybe, never]}]")
    _, found = go(engine(run), dealt(rows, 0, 7), run)
    names = {"step", "lr", "vqa.accuracy", "tokens", "fill"}
    assert [set(row) for row in found] == [names] * 3
    assert found[0]["vqa.accuracy"] == 0


def test_checkpoints_are_kept_behind_the_step_and_the_last_one_is_waited_for(
    small: Small, rows: Rows, engine: Engines
) -> None:
    run = short(small)
    here = engine(run)
    go(here, dealt(rows, 0, 7), run)
    assert here.asked("save") == [(3, False), (6, False), (7, True)]
    at = [entry[0] for entry in here.log]
    three = ["step", "step", "step", "sum", "save"]
    first = ["step", "sum", *three[1:]]  # how long a step takes, on all ranks
    last = ["step", "sum", "sum", "save"]  # the second: whether all have the time for it
    assert at == [*first, *three, *last]
    run = short(small, "steps=6")
    here = engine(run)
    go(here, dealt(rows, 0, 6), run)
    assert here.asked("save") == [(3, False), (6, True)]


def test_a_stop_keeps_a_checkpoint_and_returns(small: Small, rows: Rows, engine: Engines) -> None:
    run = short(small, "steps=1000", "checkpoint_steps=300")
    here, heard = engine(run), list[int]()
    done, found = go(
        here,
        dealt(rows, 0, 1000),
        run,
        told=lambda step, batch: heard.append(step),
        stopping=lambda: len(heard) >= 4,
    )
    assert done == 6  # the next report after it was asked
    assert here.asked("save") == [(6, True)]
    assert [row["step"] for row in found] == [3, 6]
    assert heard == list(range(6))  # no batch was heard of that was not trained on


def test_any_rank_stops_all(small: Small, rows: Rows, engine: Engines) -> None:
    """One rank was asked, the other was not: both end at the same step with the same numbers."""
    run = short(small, "steps=1000", "checkpoint_steps=300")
    one, two = engine(run), engine(run, 1)
    go(one, dealt(rows, 0, 6), run, stopping=lambda: len(one.losses) >= 6)
    two.others = iter(values for (values,) in one.asked("sum"))
    done, _ = go(two, dealt(rows, 0, 1000), run)
    assert done == 6
    assert two.asked("save") == [(6, True)]


@pytest.mark.parametrize("needs_s", [1.0, 3.0])
def test_a_checkpoint_is_begun_if_all_ranks_have_the_time(
    small: Small, rows: Rows, engine: Engines, needs_s: float
) -> None:
    run, always = short(small, "steps=1000", "checkpoint_steps=300"), {"stopping": lambda: True}
    here = engine(run)
    here.needs_s = needs_s
    done, _ = go(here, dealt(rows, 0, 1000), run, left_s=2.0, **always)
    kept = needs_s < 2.0
    assert here.asked("save") == ([(done, True)] if kept else [])
    assert here.asked("join") == ([] if kept else [()])
    other = engine(run, 1)  # which has the time, but the first has not
    other.others = iter(values for (values,) in here.asked("sum"))
    assert go(other, dealt(rows, 0, 1000), run, **always)[0] == done
    assert bool(other.asked("save")) == kept


def test_the_listener_hears_each_batch_before_it_is_trained_on(
    small: Small, rows: Rows, engine: Engines
) -> None:
    run = short(small)
    here = engine(run)
    here_told: list[tuple[Any, ...]] = []

    def hear(step: int, batch: Batch) -> None:
        assert len(here.losses) == step
        here_told.append((step, batch.keys))

    go(here, dealt(rows, 0, 7), run, told=hear)
    assert here_told == [(step, batch.keys) for step, batch in dealt(rows, 0, 7)]
    assert [keys for _, keys in here_told] == [keys for keys, _ in here.asked("step")]


def test_a_run_goes_on_from_the_middle_with_the_same_numbers(
    small: Small, rows: Rows, engine: Engines
) -> None:
    """Dropout too: its numbers are keyed by (seed, step, rank), not by what was drawn before."""
    run = short(small, "steps=9", "model.dropout=0.5")
    whole = engine(run)
    _, expected = go(whole, dealt(rows, 0, 9), run)
    first = engine(run)
    go(first, dealt(rows, 0, 6), run)
    torch.manual_seed(99)
    torch.rand(13)
    done, found = go(first, dealt(rows, 6, 9), run)
    assert done == 9
    assert found == expected[-1:]
    other = engine(run, 1)
    assert go(other, dealt(rows, 0, 9), run)[1] != expected  # each rank drops out for itself


def test_a_fault_in_the_engine_or_the_data_ends_it(
    small: Small, rows: Rows, engine: Engines
) -> None:
    run = short(small)

    def batches() -> Iterator[tuple[int, Batch]]:
        yield from dealt(rows, 0, 4)
        raise OSError("the bucket is gone")

    here = engine(run)
    with pytest.raises(OSError, match="the bucket is gone"):
        go(here, batches(), run)
    assert here.asked("save") == [(3, False)]


def test_it_learns(small: Small, rows: Rows, engine: Engines) -> None:
    run = small("steps=40", "log_steps=10", "checkpoint_steps=40", "optim.lr=1e-2",
                "optim.warmup_steps=4", "objectives=[{kind: mlm}]")  # fmt: skip
    _, found = go(engine(run), ((step, rows(16)) for step in range(40)), run)
    assert found[-1]["mlm.loss"] < 0.6 * found[0]["mlm.loss"]
