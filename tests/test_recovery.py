"""Runs that meet faults worse than a kill: no number, no progress, no machine."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
from rank_faults import key_of
from rich.console import Console

from diptych.cluster import ledger
from diptych.cluster.shapes import Shape
from diptych.cluster.train import prepare, run_on
from diptych.cluster.worker import open_plan
from diptych.data import storage
from diptych.errors import NonFiniteError
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]
PAIR = Shape(workers=2, hang_s=4)
STEPS = 14
Tiny = Callable[..., Run]
Fault = Callable[..., None]


def go(run: Run, shape: Shape, url: str) -> RunDir:
    place, data = prepare(run, shape, url)
    return run_on(run, shape, place, data, console=Console(quiet=True))


def losses(place: RunDir) -> list[dict[str, Any]]:
    rows = place.rows("metrics.jsonl")
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def happened(place: RunDir, what: str) -> list[dict[str, Any]]:
    return [row for row in place.rows("events.jsonl") if row["what"] == what]


@pytest.fixture(scope="module")
def runs(bucket: str) -> str:
    return f"{bucket}/recovery"


@pytest.fixture(scope="module")
def short(tiny: Tiny) -> Tiny:
    return lambda name, *settings: tiny("short", f"name={name}", f"steps={STEPS}", *settings)


@pytest.fixture(scope="module")
def calm(runs: str, short: Tiny, ray_here: None) -> RunDir:
    return go(short("calm"), PAIR, f"{runs}/calm")


@pytest.mark.parametrize("stage", [0, 1])
def test_a_loss_that_is_no_number_is_skipped_by_all(
    stage: Literal[0, 1], fault: Fault, runs: str, short: Tiny
) -> None:
    """Rank 1 meets it at step 7; neither rank takes that step, and all others are taken."""
    run = short(f"nan-{stage}")
    fault(what="nan", key=key_of(run, 7, 1), times=99)
    place = go(run, Shape(workers=2, zero_stage=stage), f"{runs}/nan-{stage}")
    assert [row["skipped"] for row in losses(place)] == [float(n == 7) for n in range(STEPS)]
    assert all("mlm.loss" in row for row in losses(place) if not row["skipped"])
    [skip] = happened(place, "skip")
    assert (skip["step"], skip["rank"]) == (7, 1)
    assert key_of(run, 7, 1) in skip["keys"]
    assert key_of(run, 7, 0) not in skip["keys"]
    lines = list(ledger.lines(place, open_plan(run), 0, STEPS))
    assert ledger.verify(place, lines) == 2 * STEPS


def test_a_passing_fault_is_gone_after_going_back(
    fault: Fault, calm: RunDir, runs: str, short: Tiny
) -> None:
    run = short("back", "optim.skip_limit=1")
    fault(what="nan", key=key_of(run, 7, 0))
    place = go(run, PAIR, f"{runs}/back")
    [back] = happened(place, "rollback")
    assert "7 to 7" in back["text"]
    first, second = happened(place, "attempt")
    assert first["start"] == 0
    assert second["start"] in (0, 5)  # was the checkpoint of step 5 complete by step 7?
    assert losses(place) == losses(calm)


def test_a_lasting_fault_ends_the_run_and_is_named(fault: Fault, runs: str, short: Tiny) -> None:
    run = short("lasting", "optim.skip_limit=1")
    fault(what="nan", key=key_of(run, 7, 0), times=99)
    with pytest.raises(NonFiniteError, match=f"7 to 7.*{key_of(run, 7, 0)}"):
        go(run, PAIR, f"{runs}/lasting")
    assert len(happened(RunDir(f"{runs}/lasting"), "rollback")) == 1


def test_a_rank_that_sleeps_is_named_with_its_stack(
    fault: Fault, calm: RunDir, runs: str, short: Tiny
) -> None:
    run = short("asleep")
    fault(what="sleep", key=key_of(run, 7, 1))
    place = go(run, PAIR, f"{runs}/asleep")
    [restart] = happened(place, "restart")
    assert "rank 1 is stuck at step 7 (step" in restart["text"]
    assert "rank 0" not in restart["text"]
    assert "rank_faults.py" in restart["text"]
    assert losses(place) == losses(calm)


def test_a_rank_that_is_stopped_is_named_with_its_stack(
    fault: Fault, calm: RunDir, runs: str, short: Tiny
) -> None:
    run = short("stopped")
    fault(what="SIGSTOP", key=key_of(run, 7, 1))
    place = go(run, PAIR, f"{runs}/stopped")
    [restart] = happened(place, "restart")
    assert "rank 1 is stuck at step 7" in restart["text"]
    assert "rank 0" not in restart["text"]
    lines = storage.read(place.at("logs", "rank-1.log")).decode().splitlines()
    [dump] = [number for number, line in enumerate(lines) if line.endswith(", stopped:")]
    assert any("pretrain/loop.py" in line for line in lines[dump:])
    assert losses(place) == losses(calm)


def test_a_rank_that_is_told_to_go_leaves_a_checkpoint(
    fault: Fault, calm: RunDir, runs: str, short: Tiny
) -> None:
    run = short("told")
    fault(what="SIGTERM", key=key_of(run, 7, 1))
    place = go(run, PAIR, f"{runs}/told")
    assert not happened(place, "restart")
    assert len(happened(place, "reform")) == 1
    assert [row["start"] for row in happened(place, "attempt")] == [0, 8]
    assert "it is kept" in happened(place, "preemption")[0]["text"]
    assert losses(place) == losses(calm)


def test_a_host_that_is_told_to_go_leaves_a_checkpoint(
    fault: Fault, calm: RunDir, runs: str, short: Tiny
) -> None:
    run = short("host", "checkpoint_steps=14")
    fault(what="host", key=key_of(run, 7, 1))
    place = go(run, PAIR, f"{runs}/host")
    assert not happened(place, "restart")
    assert len(happened(place, "reform")) == 1
    first, second = happened(place, "attempt")
    assert first["start"] == 0 and 8 <= second["start"] < STEPS
    assert "it is kept" in happened(place, "preemption")[0]["text"]
    assert losses(place) == losses(calm)


def test_a_checkpoint_that_would_come_too_late_is_not_begun(
    fault: Fault, calm: RunDir, runs: str, short: Tiny
) -> None:
    """No time is left, and one was timed before: the last complete one counts, nothing is lost."""
    run = short("late", "checkpoint_steps=5")
    fault(what="SIGTERM", key=key_of(run, 7, 1))
    place = go(run, PAIR.model_copy(update={"grace_s": 0.0}), f"{runs}/late")
    assert not happened(place, "restart")
    assert [row["start"] for row in happened(place, "attempt")] == [0, 5]
    [told] = happened(place, "preemption")
    assert "too late" in told["text"] and told["rank"] == 1
    assert "from step 5" in happened(place, "reform")[0]["text"]
    assert losses(place) == losses(calm)
