"""Who may publish a checkpoint, what is deleted when, and what a reader fetches of it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from diptych.cluster import ledger
from diptych.cluster.checkpoint import Snapshot, Writer
from diptych.cluster.job import Event, Place
from diptych.cluster.journal import Journal
from diptych.cluster.track import Tracker
from diptych.data import storage
from diptych.errors import CheckpointError, RunError, StorageError
from diptych.pretrain import checkpoint, slices
from diptych.pretrain.checkpoint import (
    WEIGHT,
    claim,
    commit,
    folder,
    open_checkpoint,
    retain,
    sealed,
)
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.slices import Slice, put_slices


@pytest.fixture(params=["file", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty run, on a disk and in a real bucket."""
    if request.param == "file":
        return storage.absolute(str(tmp_path / "run"))
    return f"{request.getfixturevalue('bucket')}/commit/{tmp_path.name}"


def publish(run: str, step: int, attempt: int = 1, recipe: str = "r", value: float = 0.0) -> None:
    data = torch.arange(6.0) + value
    name = f"attempt-{attempt}/rank-0.safetensors"
    pieces = put_slices(folder(run, step), name, [("w", WEIGHT, 0, data)])
    shapes = {"w": (6,)}
    commit(run, step, attempt=attempt, recipe=recipe, shapes=shapes, slices=pieces, extra={})


def test_of_many_writers_one_creates(run: str) -> None:
    names = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda name: storage.create(f"{run}/one", name), names))
    assert sum(made) == 1
    assert storage.read(f"{run}/one") == names[made.index(True)]
    assert storage.create(f"{run}/one", names[made.index(True)])  # tried again: still ours
    assert storage.children(run) == ["one"]


def test_an_attempt_that_was_given_up_publishes_nothing(run: str) -> None:
    assert claim(run, 1)
    publish(run, 5, attempt=1)
    assert claim(run, 2)
    assert not claim(run, 2)
    with pytest.raises(CheckpointError, match=r"attempt 1 .* may not publish step 10: attempt 2"):
        publish(run, 10, attempt=1)
    assert checkpoint.steps(run) == [5]
    publish(run, 10, attempt=2)
    assert checkpoint.steps(run) == [5, 10]


def test_a_step_is_published_once(run: str) -> None:
    """An older attempt was quicker by a hair: its state is as good, and it stays."""
    publish(run, 5, attempt=1, value=1.0)
    before = storage.read(f"{folder(run, 5)}/manifest.json")
    publish(run, 5, attempt=2, value=2.0)
    assert storage.read(f"{folder(run, 5)}/manifest.json") == before
    assert open_checkpoint(run).read("w", WEIGHT)[0] == 1.0
    with pytest.raises(CheckpointError, match="Is there a second run"):
        publish(run, 5, attempt=3, recipe="another")


def test_each_driver_gets_a_number_of_its_own(run: str) -> None:
    place = RunDir(run)
    numbers = [ledger.begin(place, 0, 2), ledger.begin(place, 5, 2)]
    assert claim(run, 3)  # another driver, whose line in attempts.jsonl is not there yet
    assert [*numbers, ledger.begin(place, 5, 1)] == [1, 2, 4]
    assert [attempt.number for attempt in ledger.attempts(place)] == [1, 2, 4]


def test_what_is_deleted_is_first_no_checkpoint_any_more(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 10, 15):
        publish(run, step)
    storage.write(f"{folder(run, 7)}/attempt-1/rank-0.json", b"[]")  # never finished
    storage.write(f"{folder(run, 20)}/attempt-1/rank-0.json", b"[]")  # being written
    deleted: list[str] = []
    delete = storage.delete

    def listen(url: str) -> None:
        deleted.append(url.partition("checkpoints/")[2])
        delete(url)

    monkeypatch.setattr(storage, "delete", listen)
    retain(run, 2)
    assert checkpoint.steps(run) == [10, 15]
    steps = ["00000005", "00000007"]
    assert deleted == [name for step in steps for name in (f"{step}/manifest.json", step)]
    for step in (5, 7):
        assert not storage.exists(f"{folder(run, step)}/attempt-1/rank-0.json")
        assert not storage.exists(f"{folder(run, step)}/attempt-1/rank-0.safetensors")
    assert open_checkpoint(run, 10).read("w", WEIGHT)[1] == 1.0
    assert storage.exists(f"{folder(run, 20)}/attempt-1/rank-0.json")


def test_a_bucket_in_which_nothing_may_be_deleted_ends_no_run(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> None:
        raise StorageError(f"{url}: not deleted")

    monkeypatch.setattr(storage, "delete", refuse)
    assert claim(run, 1)
    said: list[str] = []
    writer = Writer(
        run=run,
        recipe="r",
        rank=0,
        world=1,
        attempt=1,
        keep=1,
        journal=Journal(0),
        stream=lambda step: {},
        say=said.append,
    )
    for step in (5, 10):
        nothing: dict[str, Any] = {"live": [], "pieces": [], "shapes": {}, "base": None}
        page = writer.journal.turn()
        writer.write(Snapshot(step=step, optimiser_step=0.0, page=page, ready=None, **nothing))
        writer.raise_fault()
    assert checkpoint.steps(run) == [5, 10]
    url = f"{folder(run, 5)}/manifest.json"
    assert said == [f"older checkpoints stay: {url}: not deleted"]


def test_a_manifest_that_does_not_read_back_is_an_error(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda url, *range: read(url, *range)[:-1])
    with pytest.raises(CheckpointError, match=r"manifest\.json is not what attempt 1 wrote"):
        publish(run, 5)


Heard = list[tuple[str, int]]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """(file, bytes) of each ranged read."""
    found: Heard = []
    read = storage.read

    def listen(url: str, start: int | None = None, end: int | None = None) -> bytes:
        if start is not None and end is not None:
            found.append((storage.name(url), end - start))
        return read(url, start, end)

    monkeypatch.setattr(storage, "read", listen)
    return found


def many(run: str, ranks: int, elements: int) -> None:
    """Three parameters, each cut among ranks."""
    found: list[Slice] = []
    for rank in range(ranks):
        part = elements // ranks
        pieces = [
            (f"p{n}", WEIGHT, rank * part, torch.full((part,), 10.0 * n + rank)) for n in range(3)
        ]
        found += put_slices(folder(run, 1), f"attempt-1/rank-{rank}.safetensors", pieces)
    commit(
        run, 1, recipe="r", shapes={f"p{n}": (elements,) for n in range(3)}, slices=found, extra={}
    )


def test_a_rank_reads_its_own_slices_in_few_requests(run: str, heard: Heard) -> None:
    """One rank of four at another cut: its quarter of three parameters, from one file or two."""
    many(run, ranks=2, elements=800)
    found = open_checkpoint(run)
    heard.clear()
    quarter = [torch.empty(200) for _ in range(3)]
    found.fill((f"p{n}", WEIGHT, 200, data) for n, data in enumerate(quarter))
    assert all(bool((data == 10 * n).all()) for n, data in enumerate(quarter))
    assert heard == [("rank-0.safetensors", 3 * 400 * 4)]
    across = torch.empty(200)
    heard.clear()
    found.fill([("p1", WEIGHT, 300, across)])
    assert across.tolist() == [10.0] * 100 + [11.0] * 100
    assert heard == [(f"rank-{rank}.safetensors", 400 * 4) for rank in (0, 1)]


def test_of_a_large_parameter_only_the_chunks_that_are_needed_are_read(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_CHUNK", 64)
    run = storage.absolute(str(tmp_path))
    many(run, ranks=1, elements=6400)
    found = open_checkpoint(run)
    heard.clear()
    assert len(found.read("p2", WEIGHT, 130, 60)) == 60
    assert heard == [("rank-0.safetensors", 64 * 4)]
    heard.clear()
    monkeypatch.setattr(slices, "_SPAN", 4096)
    assert bool((found.weights()["p2"] == 20).all())
    assert sum(size for _, size in heard) == 3 * 6400 * 4
    assert max(size for _, size in heard) == 4096


def test_the_files_are_safetensors_as_their_own_library_reads_them(tmp_path: Path) -> None:
    run = storage.absolute(str(tmp_path))
    many(run, ranks=2, elements=10)
    for rank in (0, 1):
        file = storage.local_path(folder(run, 1)) / f"attempt-1/rank-{rank}.safetensors"
        found = load_file(file)
        names = {f"{WEIGHT}/p{n}@{5 * rank}" for n in range(3)}
        assert set(found) == names
        assert all(
            found[f"{WEIGHT}/p{n}@{5 * rank}"].tolist() == [10.0 * n + rank] * 5 for n in range(3)
        )


@pytest.mark.parametrize(
    "file", ["../../secret", "s3://other/x.safetensors", "a.pt", "/etc/passwd"]
)
def test_a_manifest_leads_nowhere_else(tmp_path: Path, file: str) -> None:
    run = storage.absolute(str(tmp_path))
    publish(run, 5)
    place = storage.local_path(folder(run, 5)) / "manifest.json"
    body = json.loads(place.read_text())
    body["slices"][0][4] = file
    place.write_text(json.dumps(sealed(body)))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        open_checkpoint(run)


def test_a_driver_that_was_given_up_leaves_the_folder_alone(run: str, tiny: Any) -> None:
    """A laptop sleeps while its run goes on elsewhere, to the end; then it wakes up."""
    place, quiet = RunDir(run), Console(quiet=True)
    place_of_rank = Place(pid=1, host="h", address="a", port=1, node="n")
    row = Event("metrics", 0, {"step": 10, "lr": 0.1})
    with Tracker(tiny("given-up"), place, quiet) as old, Tracker(old.run, place, quiet) as new:
        assert old.begin(0, [place_of_rank]) == 1
        assert new.begin(0, [place_of_rank]) == 2
        new.hear(row)
        new.log("the end")
        new.status("finished")
        new.flush()
        names = ("status.json", "metrics.jsonl", "events.jsonl", "logs/driver.log")
        kept = {name: storage.read(place.at(name)) for name in names}
        old.hear(row._replace(body={"step": 10, "lr": 0.9}))
        old.hear(Event("event", -1, {"what": "restart", "text": "a worker died"}))
        old.status("failed", "gone")
        old.flush()
        with pytest.raises(RunError, match="another driver has taken this run over"):
            old.begin(0, [place_of_rank])
        assert old.stop_asked and not new.stop_asked
    assert kept == {name: storage.read(place.at(name)) for name in names}


@pytest.mark.parametrize("while_", ["it is claimed", "attempts are listed"])
def test_a_driver_is_not_given_up_for_its_own_next_attempt(
    while_: str, run: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heart beats in another thread, at any moment of it."""
    ranks = [Place(pid=1, host="h", address="a", port=1, node="n")]
    begin, newer = ledger.begin, checkpoint.newer
    with Tracker(tiny("again"), RunDir(run), Console(quiet=True)) as tracker:
        assert tracker.begin(0, ranks) == 1
        if while_ == "it is claimed":

            def beats(*told: Any) -> int:
                number = begin(*told)
                tracker.status("running")
                return number

            monkeypatch.setattr(ledger, "begin", beats)
            assert tracker.begin(0, ranks) == 2
        else:

            def begins(*told: Any) -> int | None:
                monkeypatch.setattr(checkpoint, "newer", newer)
                tracker.begin(0, ranks)
                return newer(*told)

            monkeypatch.setattr(checkpoint, "newer", begins)
            tracker.flush()
        assert not tracker.stop_asked
