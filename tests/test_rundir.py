"""A run's folder: one recipe, one driver, and nothing in it that is read without a check."""

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from diptych.cluster import jobs
from diptych.cluster.shapes import Shape
from diptych.cluster.status import STOP, busy, here
from diptych.cluster.train import prepare
from diptych.config import digest, plain
from diptych.data import storage, tokens
from diptych.data.index import Manifest
from diptych.data.pack import Sample
from diptych.errors import DataError, RecipeError, RunError
from diptych.finetune.parts import KINDS
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]
Small = Callable[..., Run]
ONE = Shape(workers=1)


@pytest.fixture
def place(tmp_path: Path) -> RunDir:
    return RunDir(storage.absolute(str(tmp_path / "runs" / "mine")))


@pytest.fixture
def run(small: Small, samples: Samples, dataset: Dataset, tmp_path: Path) -> Run:
    """A run whose data and tokenizer are here."""
    dataset([samples(20), samples(20, first=20)])
    storage.write(str(tmp_path / "tokenizer.json"), tokens.learn(["a picture"], 100).encode())
    here = (f"data.train={tmp_path}/set", f"data.tokenizer={tmp_path}/tokenizer.json")
    return small(*here, "batch=8", "name=mine")


def other(run: Run, *settings: str) -> Run:
    return revise(plain(run), list(settings), KINDS, source="other")


def test_a_new_folder_keeps_the_recipe(place: RunDir, run: Run) -> None:
    assert place.create(run, {"data": "d1"}) is True
    assert place.recipe(KINDS) == run
    assert place.json("run.json") == {"recipe": digest(run), "data": "d1"}
    assert place.name == "mine"


def test_the_same_recipe_finds_its_folder_again(place: RunDir, run: Run) -> None:
    place.create(run, {"data": "d1", "made": "yesterday"})
    assert place.create(run, {"data": "d1", "made": "today"}) is False
    assert place.json("run.json")["made"] == "yesterday"


@pytest.mark.parametrize(
    "setting", ["optim.lr=1e-4", "seed=1", "steps=9", "objectives.mlm.rate=0.2", "model.depth=2"]
)
def test_another_recipe_under_the_same_name_is_refused(
    setting: str, place: RunDir, run: Run
) -> None:
    place.create(run, {"data": "d1"})
    before = storage.read(place.at("recipe.yaml"))
    with pytest.raises(RunError, match=r"runs/mine was made with another recipe \(\w+, now \w+\)"):
        place.create(other(run, setting), {"data": "d1"})
    assert storage.read(place.at("recipe.yaml")) == before


def test_other_data_under_the_same_name_is_refused(place: RunDir, run: Run) -> None:
    place.create(run, {"data": "d1"})
    said = r"another data \(d1, now d2\)\. Give this run another name with --run"
    with pytest.raises(RunError, match=said):
        place.create(run, {"data": "d2"})


def test_an_interrupted_start_is_begun_again(place: RunDir, run: Run) -> None:
    """run.json is written last; a recipe without it is nobody's."""
    storage.write(place.at("recipe.yaml"), b"name: half")
    assert place.create(run, {"data": "d1"}) is True
    assert place.recipe(KINDS) == run


def test_a_folder_without_a_run_is_named(place: RunDir) -> None:
    with pytest.raises(RunError, match=r"runs/mine is not a run\. `diptych jobs`"):
        place.recipe(KINDS)
    assert place.json("status.json") == {}
    assert place.rows("metrics.jsonl") == []


@pytest.mark.parametrize("blob", [b"", b"{", b"\xff", b"[]", b"3", b"\x80\x04K\x01."])
def test_a_damaged_file_is_named(blob: bytes, place: RunDir) -> None:
    storage.write(place.at("status.json"), blob)
    with pytest.raises(RunError, match=r"runs/mine/status\.json is damaged"):
        place.json("status.json")
    storage.write(place.at("metrics.jsonl"), b'{"step": 1}\n' + (blob or b"?"))
    with pytest.raises(RunError, match=r"runs/mine/metrics\.jsonl is damaged"):
        place.rows("metrics.jsonl")


def test_a_damaged_recipe_is_named(place: RunDir, run: Run) -> None:
    place.create(run, {})
    for blob in (b"\x00", b"name: !!python/name:os.system", b"name: mine", b"colour: red"):
        storage.write(place.at("recipe.yaml"), blob)
        with pytest.raises(RecipeError, match=r"runs/mine/recipe\.yaml"):
            place.recipe(KINDS)


# One driver at a time.


def status(**changes: Any) -> dict[str, Any]:
    return {"state": "running", **here(), "beat": time.time(), **changes}


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_who_is_busy() -> None:
    assert busy(status())
    assert busy(status(host="elsewhere", pid=1))
    assert not busy({})
    assert not busy(status(pid=dead_pid()))
    assert not busy(status(host="elsewhere", beat=time.time() - 3600))
    for state in ("finished", "stopped", "failed"):
        assert not busy(status(state=state))


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """A process that has nothing to do with any run, and hears no SIGTERM."""
    deaf = functools.partial(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    with subprocess.Popen(["sleep", "60"], preexec_fn=deaf) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_a_number_of_another_process_is_not_the_driver(
    sleeper: psutil.Process, place: RunDir
) -> None:
    """A machine counts its processes anew after a start; a container's first is always 1."""
    for pid in (sleeper.pid, os.getpid()):
        assert not busy(status(pid=pid, born=psutil.Process(pid).create_time() - 60))
    assert not busy(status(born=None)), "of before, when nobody wrote when it began"
    assert busy(status(pid=sleeper.pid, born=None))
    place.put("status.json", status(pid=sleeper.pid, born=sleeper.create_time() - 60))
    with pytest.raises(RunError, match=r"is not running \(it is lost\)"):
        jobs.stop(place)
    assert sleeper.is_running()


def test_a_driver_that_does_not_end_is_killed(
    sleeper: psutil.Process, place: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_GRACE_S", 0.3)
    place.put("status.json", status(pid=sleeper.pid, born=sleeper.create_time(), step=3, note=""))
    assert jobs.stop(place) == f"killed: process {sleeper.pid} did not end within 0 s"
    sleeper.wait(10)
    assert not busy(place.json("status.json"))


def test_a_busy_run_is_refused_and_left_alone(place: RunDir, run: Run) -> None:
    place.put("status.json", status())
    with pytest.raises(RunError, match=rf"is being run by process {os.getpid()} on .*`diptych sto"):
        prepare(run, ONE, place.url)
    assert not storage.exists(place.at("run.json"))
    place.put("status.json", status(host="elsewhere"))
    with pytest.raises(RunError, match="on elsewhere"):
        prepare(run, ONE, place.url)


@pytest.mark.parametrize("left", ["dead", "stopped", "silent"])
def test_a_run_whose_driver_is_gone_is_gone_on_with(left: str, place: RunDir, run: Run) -> None:
    change: dict[str, Any] = {
        "dead": {"pid": dead_pid()},
        "stopped": {"state": "stopped"},
        "silent": {"host": "elsewhere", "beat": time.time() - 3600},
    }[left]
    place.put("status.json", status(**change))
    found, data = prepare(run, ONE, place.url)
    assert found == place
    assert place.json("run.json")["data"] == data
    assert prepare(run, ONE, place.url)[0] == place  # and again


def test_a_request_to_stop_an_earlier_run_is_forgotten(place: RunDir, run: Run) -> None:
    place.put(STOP, {"asked": 0})
    prepare(run, ONE, place.url)
    assert not storage.exists(place.at(STOP))


def test_nothing_is_made_before_all_checks_are_passed(
    place: RunDir, run: Run, samples: Samples, dataset: Dataset, tmp_path: Path
) -> None:
    dataset([samples(4)], "few")
    mistakes = {
        f"data.train={tmp_path}/none": "has no index",
        f"data.train={tmp_path}/few": "4 samples",
        f"data.tokenizer={tmp_path}/none.json": "not there",
        f"data.tokenizer={tmp_path}/set/index/manifest.json": "is not a tokenizer",
        f"start_from={tmp_path}/none": "none has no complete checkpoint",
        "objectives.itm.group=5": "multiple of 5",
    }
    for setting, said in mistakes.items():
        with pytest.raises(Exception, match=said) as caught:
            prepare(other(run, setting), ONE, place.url)
        assert type(caught.value).__module__ == "diptych.errors", setting
    assert not storage.exists(place.at("run.json"))
    assert not storage.exists(place.at("tokenizer.json"))


def test_data_that_changed_in_between_is_refused(
    place: RunDir, run: Run, samples: Samples, dataset: Dataset
) -> None:
    prepare(run, ONE, place.url)
    dataset([samples(20), samples(21, first=20)])
    with pytest.raises((RunError, DataError), match="another data"):
        prepare(run, ONE, place.url)
