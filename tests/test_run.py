"""Real runs: a Ray cluster, DeepSpeed workers, a bucket. One is undisturbed; all others agree."""

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_faults import key_of
from rich.console import Console

from diptych.cluster import journal, ledger
from diptych.cluster.job import Event
from diptych.cluster.replay import replay
from diptych.cluster.shapes import Shape
from diptych.cluster.track import Tracker
from diptych.cluster.train import prepare, run_on
from diptych.cluster.worker import open_plan
from diptych.data import index, storage
from diptych.errors import ClusterError, DataError, ReplacedError, RunError
from diptych.pretrain.checkpoint import open_checkpoint, steps
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]

PAIR = Shape(workers=2)
GOLDEN = Path(__file__).parent / "golden" / "vlp_tiny.txt"
Tiny = Callable[..., Run]


def go(run: Run, shape: Shape, url: str) -> RunDir:
    place, data = prepare(run, shape, url)
    return run_on(run, shape, place, data, console=Console(quiet=True))


def losses(place: RunDir) -> list[dict[str, Any]]:
    """Metrics rows without the clock."""
    rows = place.rows("metrics.jsonl")
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def totals(place: RunDir) -> list[float]:
    """The sum of the losses of each step."""
    return [sum(v for name, v in row.items() if name.endswith(".loss")) for row in losses(place)]


@pytest.fixture(scope="module")
def runs(bucket: str) -> str:
    return f"{bucket}/runs"


@pytest.fixture(scope="module")
def calm(runs: str, tiny: Tiny, ray_here: None) -> RunDir:
    """The undisturbed run of two workers at ZeRO-1."""
    return go(tiny("calm"), PAIR, f"{runs}/calm")


def test_every_sample_of_an_epoch_is_seen_once(calm: RunDir, tiny: Tiny) -> None:
    lines = list(ledger.lines(calm, open_plan(tiny("calm")), 0, 30))
    assert len({(line.shard, line.key) for line in lines}) == len(lines) == 30 * 16
    assert ledger.verify(calm, lines) == 60  # 30 steps of 2 ranks, recorded as planned


def test_a_tampered_ledger_is_found_out(calm: RunDir, tiny: Tiny) -> None:
    lines = list(ledger.lines(calm, open_plan(tiny("calm")), 0, 5))
    lines[3] = lines[3]._replace(key="another")
    with pytest.raises(DataError, match="other samples than planned"):
        ledger.verify(calm, lines)


def test_it_leaves_metrics_events_logs_and_checkpoints(calm: RunDir) -> None:
    assert [row["step"] for row in losses(calm)] == list(range(1, 31))
    assert totals(calm)[-1] < 0.6 * totals(calm)[0]
    assert steps(calm.url) == [25, 30]
    assert any("tfevents" in name for name in storage.children(calm.at("tensorboard")))
    assert {"rank-0.log", "rank-1.log"} <= set(storage.children(calm.at("logs")))
    assert calm.json("status.json")["state"] == "finished"
    files = storage.children(calm.at("checkpoints/00000030/attempt-1"))
    assert {name.rpartition(".")[2] for name in files} == {"safetensors", "json"}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_changes_nothing(
    victim: int, calm: RunDir, runs: str, tiny: Tiny, fault: Callable[..., None]
) -> None:
    """SIGKILL in step 13: the group comes back at 10 or before and ends with the same bits."""
    run = tiny("calm", "name=killed")
    fault(what="SIGKILL", key=key_of(run, 13, victim))
    place = go(run, PAIR, f"{runs}/killed-{victim}")
    assert losses(place) == losses(calm)
    tried = ledger.attempts(place)
    assert len(tried) == 2
    assert tried[1].start in (0, 5, 10)  # whichever checkpoint was complete
    ours, theirs = open_checkpoint(place.url), open_checkpoint(calm.url)
    for name, shape in theirs.shapes.items():
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            assert ours.shapes[name] == shape
            assert torch.equal(ours.read(name, kind), theirs.read(name, kind)), (name, kind)
    lines = list(ledger.lines(place, open_plan(run), 0, 30))
    assert ledger.verify(place, lines) == 60


def test_a_worker_that_always_dies_ends_the_run(
    runs: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = Tracker.hear

    def kill_always(self: Tracker, event: Any) -> None:
        hear(self, event)
        if event.kind == "metrics":
            with contextlib.suppress(ProcessLookupError):  # it said more before it died
                os.kill(self.places[0].pid, signal.SIGKILL)

    monkeypatch.setattr(Tracker, "hear", kill_always)
    with pytest.raises(ClusterError, match="died 2 times"):
        go(
            tiny("dying", "steps=500", "checkpoint_steps=500"),
            Shape(workers=2, max_failures=1),
            f"{runs}/dying",
        )


@pytest.mark.parametrize(
    "shape",
    [
        Shape(workers=1, zero_stage=0),
        Shape(workers=1, zero_stage=1, micro_batch=4),
        Shape(workers=2, zero_stage=0),
        Shape(workers=2, zero_stage=2, micro_batch=4),
        Shape(workers=2, zero_stage=3, whole_below=64, recompute=True),
    ],
    ids=lambda shape: f"{shape.workers}x zero{shape.zero_stage} micro{shape.micro_batch}",
)
def test_golden_losses_at_any_shape(shape: Shape, runs: str, tiny: Tiny) -> None:
    """One file of losses, whatever world size, ZeRO stage and accumulation."""
    name = f"golden-{shape.workers}-{shape.zero_stage}"
    place = go(tiny(name, "steps=10"), shape, f"{runs}/{name}")
    if not GOLDEN.exists() and shape == Shape(workers=1, zero_stage=0):
        GOLDEN.write_text("".join(f"{value!r}\n" for value in totals(place)))
    assert totals(place) == pytest.approx(golden(), rel=2e-4)


def test_golden_losses_of_the_calm_run(calm: RunDir) -> None:
    assert totals(calm)[:10] == pytest.approx(golden(), rel=2e-4)


def golden() -> list[float]:
    """Made by `1x zero0` with torch 2.14.1; to make it anew, delete the file and run that test."""
    return [float(line) for line in GOLDEN.read_text().split()]


def test_another_world_and_stage_go_on_from_a_checkpoint(
    calm: RunDir, runs: str, tiny: Tiny
) -> None:
    """Two workers at ZeRO-1 stop after 15 steps; one at ZeRO-0, then two at ZeRO-2, go on."""
    url = f"{runs}/moved"
    run = tiny("calm", "name=moved")
    go_until(run, Shape(workers=2, keep_checkpoints=9), url, 15)
    go_until(run, Shape(workers=1, zero_stage=0, keep_checkpoints=9), url, 20)
    place = go(run, Shape(workers=2, zero_stage=2, micro_batch=4), url)
    assert totals(place) == pytest.approx(totals(calm), rel=2e-3)
    lines = list(ledger.lines(place, open_plan(run), 0, 30))
    assert len({(line.shard, line.key) for line in lines}) == 480
    assert ledger.verify(place, lines) == 15 * 2 + 5 * 1 + 10 * 2


def go_until(run: Run, shape: Shape, url: str, step: int) -> None:
    """Runs, and forgets whatever came after the checkpoint of `step` steps."""
    place = go(run, shape, url)
    for later in [found for found in steps(url) if found > step]:
        storage.delete(place.at(f"checkpoints/{later:08d}"))
    assert max(steps(url)) == step


@pytest.fixture(scope="module")
def more(bucket: str, easy: str) -> str:
    """Two shards more, each with a picture that was damaged before it was packed."""
    for name in ("00001.tar", "00004.tar"):
        data = bytearray(storage.read(f"{easy}/{name}"))
        first = data.index(b"\x89PNG")
        data[first + 40 : first + 44] = bytes(4)
        data[first + 60 : first + 64] = bytes(4)
        storage.write(f"{bucket}/more/{name}", bytes(data))
    index.build(storage.expand(f"{bucket}/more/*.tar"))
    return f"{bucket}/more"


def test_sources_buckets_and_holes_are_the_same_on_any_world(
    easy: str, more: str, runs: str, tiny: Tiny, tmp_path: Path
) -> None:
    run = tiny(
        "mixed",
        f"data.train=[{{url: {easy}, weight: 2}}, {{url: {more}}}]",
        "data.buckets.lengths=[36]",
        "data.faults={shard: 0.05, source: 0.01}",
        "steps=20",
    )
    calm = go(run, PAIR, f"{runs}/mixed")
    go_until(run, Shape(workers=2, keep_checkpoints=9), f"{runs}/mixed-moved", 10)
    moved = go(run, Shape(workers=1, zero_stage=0), f"{runs}/mixed-moved")
    assert totals(moved) == pytest.approx(totals(calm), rel=2e-3)
    plan = open_plan(run)
    lines = list(ledger.lines(moved, plan, 0, 20))
    assert ledger.verify(moved, lines) == 10 * 2 + 10
    assert len({line[2:] for line in lines}) == len(lines) == 320
    more_rows = sum(line.shard.startswith("more/") for line in lines)
    assert len({plan.bucket(step) for step in range(20)}) == 2
    assert 60 < more_rows < 150, "about a third"
    holes = journal.holes(moved)
    assert holes == journal.holes(calm)
    assert {hole.shard for hole in holes} <= {"more/00001.tar", "more/00004.tar"}
    trained = {f"{line.shard}/{line.key}" for line in lines}
    assert holes and all(f"{hole.shard}/{hole.key}" in trained for hole in holes)
    step = next(line.step for line in lines if line[2:4] == holes[0][:2])
    told = replay(moved, step, tmp_path)
    assert (told["rows"], told["left out"]) == (16, 1)
    assert told["slices as the ranks recorded them"] in ("2 of 2", "1 of 1")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["key"] for row in rows] == [line.key for line in lines if line.step == step]


def test_a_finished_run_is_not_trained_again(calm: RunDir, tiny: Tiny) -> None:
    before = ledger.attempts(calm)
    go(tiny("calm"), PAIR, calm.url)
    assert ledger.attempts(calm) == before


def test_another_recipe_in_the_same_place_is_refused(calm: RunDir, tiny: Tiny) -> None:
    with pytest.raises(RunError, match="another recipe"):
        prepare(tiny("calm", "optim.lr=1e-4"), PAIR, calm.url)


def test_a_run_that_is_busy_is_refused(runs: str, tiny: Tiny) -> None:
    place, _ = prepare(tiny("busy"), PAIR, f"{runs}/busy")
    with Tracker(tiny("busy"), place, Console(quiet=True)) as tracker:
        tracker.status("running")
    with pytest.raises(RunError, match="is being run by process"):
        prepare(tiny("busy"), PAIR, place.url)


def test_an_objective_that_learns_of_nothing_is_named_once(runs: str, tiny: Tiny) -> None:
    run = tiny("nothing")
    place, _ = prepare(run, PAIR, f"{runs}/so-called")
    said = io.StringIO()
    row = {"step": 10, "skipped": 0, "itm.loss": 1.0, "mrm.loss": 1.0, "mlm.accuracy": 0.0}
    with Tracker(run, place, Console(file=said, width=200)) as tracker:
        tracker.begin(0, [])
        for step in (10, 20):
            tracker.hear(Event("metrics", 0, {**row, "step": step}))
    assert said.getvalue().count("mlm had nothing to learn of in any sample up to step 10") == 1
    assert "itm had" not in said.getvalue()
    assert {line.split()[0].strip(":") for line in said.getvalue().splitlines()} == {"so-called"}


def test_a_damaged_sample_is_named_and_ends_the_run(bucket: str, easy: str, tiny: Tiny) -> None:
    """Two flipped bytes in the bucket, after indexing."""
    url = f"{bucket}/damaged"
    for name in [*(f"{n:05d}.tar" for n in range(6)), "tokenizer.json"]:
        storage.write(f"{url}/{name}", storage.read(f"{easy}/{name}"))
    index.build(storage.expand(f"{url}/*.tar"))
    shard = bytearray(storage.read(f"{url}/00003.tar"))
    shard[530:532] = b"\0\0"
    storage.write(f"{url}/00003.tar", bytes(shard))
    run = tiny("damaged", f"data.train={url}", "steps=40")
    with pytest.raises(ReplacedError, match=r"00003\.tar was replaced since it was indexed"):
        go(run, PAIR, f"{bucket}/runs/damaged")
    assert RunDir(f"{bucket}/runs/damaged").json("status.json")["state"] == "failed"
