"""The command line as a user meets it: one clear sentence and exit code 2, or the thing itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from diptych.cluster.ledger import attempts
from diptych.config import to_yaml
from diptych.data import storage
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

pytestmark = pytest.mark.cluster
Tiny = Callable[..., Run]
MINUTES = 240


def diptych(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diptych", *words]
    env = {**os.environ, **environment, "COLUMNS": "300"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=MINUTES)


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """It ended with code 2 and one sentence that has all the parts, and no traceback."""
    assert done.returncode == 2, done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    for part in parts:
        assert part in done.stderr, done.stderr


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Callable[..., str]:
    """`recipe("name", "steps=10")`: a YAML file of a tiny run."""

    def make(name: str, *settings: str) -> str:
        file = tmp_path / f"{name}.yaml"
        file.write_text(to_yaml(tiny(name, *settings)))
        return str(file)

    return make


def test_an_unknown_recipe_names_the_near_one() -> None:
    refused(diptych("train", "vlp_eazy"), "'vlp_eazy'", "Did you mean 'vlp_easy'?", "vqa_easy")


def test_an_unknown_key_names_the_near_one() -> None:
    done = diptych("plan", "vlp_easy", "--set", "optim.learning_rate=1")
    refused(done, "optim.learning_rate", "There are:", "lr")
    done = diptych("train", "vlp_easy", "--set", "objectives.mlm.rat=0.2")
    refused(done, "'rat'", "Did you mean 'rate'?")


@pytest.mark.parametrize("name", ["..", "~line", ".hidden", "a" * 300])
def test_a_name_that_no_run_can_have(name: str, tmp_path: Path) -> None:
    done = diptych("train", "vlp_easy", "--runs", str(tmp_path / "runs"), "--run", name)
    refused(done, name[:40], "cannot be the name of a run")
    assert not any(tmp_path.iterdir())


def test_a_run_to_start_from_is_named_as_others_are(tmp_path: Path) -> None:
    words = ["train", "vlp_easy", "--runs", str(tmp_path), "--run", "b"]
    refused(diptych(*words, "--start-from", "b"), f"{tmp_path}/b cannot start from its own")


def test_a_picture_of_the_plan_has_an_ending(tmp_path: Path) -> None:
    done = diptych("plan", "vlp_easy", "--plot", str(tmp_path / "lr.txt"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and ".png" in done.stderr


def test_a_missing_bucket(bucket: str, recipe: Callable[..., str]) -> None:
    done = diptych("train", recipe("a"), "--set", "data.train=s3://nowhere/set")
    refused(done, "s3://nowhere", "no such bucket")
    refused(diptych("train", recipe("a"), "--runs", "s3://nowhere/runs"), "no such bucket")


def test_wrong_credentials(bucket: str, recipe: Callable[..., str]) -> None:
    done = diptych("train", recipe("a"), AWS_SECRET_ACCESS_KEY="canary-9141")
    refused(done, "wrong secret key", "AWS_SECRET_ACCESS_KEY")
    assert "canary-9141" not in done.stdout + done.stderr
    done = diptych("train", recipe("a"), AWS_ACCESS_KEY_ID="nobody")
    refused(done, "unknown access key")


def test_a_server_that_does_not_answer(bucket: str, recipe: Callable[..., str]) -> None:
    done = diptych("train", recipe("a"), AWS_ENDPOINT_URL="http://127.0.0.1:9")
    refused(done, "does not answer", "AWS_ENDPOINT_URL")


def test_data_without_index(bucket: str, recipe: Callable[..., str]) -> None:
    done = diptych("train", recipe("a"), "--set", f"data.train={bucket}/none")
    refused(done, "has no index", "diptych data index")


def test_an_unreadable_shard(tmp_path: Path, easy: str) -> None:
    shard = storage.read(f"{easy}/00000.tar")
    (tmp_path / "00000.tar").write_bytes(shard[: len(shard) // 2])
    done = diptych("data", "index", f"{tmp_path}/*.tar")
    refused(done, "00000.tar", "cut short", "Upload it again")


def test_too_few_samples(recipe: Callable[..., str]) -> None:
    refused(diptych("train", recipe("a"), "--set", "batch=1024"), "600 samples", "1024")


def test_a_batch_that_does_not_divide(recipe: Callable[..., str]) -> None:
    done = diptych("train", recipe("a"), "--shape-set", "workers=3")
    refused(done, "batch 16", "3 workers")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_no_space_for_a_checkpoint(small_disk: Path, recipe: Callable[..., str]) -> None:
    done = diptych("train", recipe("a", "model.width=64"), "--runs", str(small_disk))
    refused(done, "no space left", str(small_disk))


def test_no_space_for_shards(small_disk: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        noise = Image.frombytes("RGB", (120, 120), os.urandom(120 * 120 * 3))
        noise.save(pictures / f"{number}.png")
    refused(diptych("data", "pack", str(pictures), str(small_disk / "set")), "no space left")


def test_plan_tells_and_starts_nothing(recipe: Callable[..., str]) -> None:
    facts = json.loads(diptych("plan", recipe("a"), "--json").stdout)
    assert facts["samples"] == 600
    assert facts["steps per epoch"] == 37.5
    assert facts["micro-batch"] == 8
    assert facts["deepspeed"]["zero_optimization"] == {"stage": 1}


def test_a_folder_of_pictures_to_a_checked_dataset(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.new("RGB", (20, 30), (number * 40, 0, 0)).save(pictures / f"{number}.jpg")
        (pictures / f"{number}.txt").write_text(f"red of strength {number}")
    out = str(tmp_path / "set")
    assert diptych("data", "pack", str(pictures), out, "--per-shard", "2").returncode == 0
    found = json.loads(diptych("data", "check", out, "--json").stdout)
    assert (found["good"], found["of"], found["faults"]) == (5, 5, [])
    page = tmp_path / "page.html"
    assert diptych("data", "preview", out, "--out", str(page)).returncode == 0
    assert page.read_text().count("<figure>") == 5
    shard = tmp_path / "set" / "00001.tar"
    blob = bytearray(shard.read_bytes())
    blob[700] ^= 255
    shard.write_bytes(bytes(blob))
    assert diptych("data", "check", out).returncode == 2


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def await_step(place: RunDir, step: int) -> None:
    deadline = time.monotonic() + MINUTES
    while time.monotonic() < deadline:
        if any(row["step"] >= step for row in place.rows("metrics.jsonl")):
            return
        time.sleep(0.2)
    raise AssertionError(f"{place.url} did not reach step {step}")


def test_the_whole_process_group_is_told_to_end_and_train_goes_on(
    bucket: str, recipe: Callable[..., str]
) -> None:
    """SIGINT as a terminal sends it, then SIGTERM as `timeout` and schedulers do: Ray's too."""
    place = RunDir(f"{bucket}/runs/broken")
    settings = ("steps=300", "checkpoint_steps=20", "log_steps=5")
    words = [sys.executable, "-m", "diptych", "train", recipe("broken", *settings)]
    words += ["--runs", f"{bucket}/runs"]
    ends = [0]
    for told in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            words, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        await_step(place, ends[-1] + 10)
        family = children_of(process.pid)
        assert len(family) > 3  # Ray's processes and the workers
        os.killpg(process.pid, told)
        said = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 130, said
        assert "goes on from here" in said
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        stopped = place.json("status.json")
        assert stopped["state"] == "stopped"
        assert ends[-1] < stopped["step"] < 300
        assert attempts(place)[-1].start == ends[-1]
        ends.append(stopped["step"])
    done = subprocess.run(words, capture_output=True, text=True, timeout=MINUTES)
    assert done.returncode == 0, done.stderr
    reports = sorted({*range(5, 301, 5), *ends[1:]})  # and one where it was stopped
    assert [row["step"] for row in place.rows("metrics.jsonl")] == reports
    assert attempts(place)[-1].start == ends[-1]


def test_submit_jobs_logs_stop(bucket: str, recipe: Callable[..., str], tmp_path: Path) -> None:
    settings = ("steps=5000", "checkpoint_steps=20", "log_steps=5")
    common = ["--runs", f"{bucket}/jobs"]
    file = recipe("job", *settings)
    home = {"XDG_STATE_HOME": str(tmp_path)}
    done = diptych("submit", file, "--cluster", "local", *common, **home)
    assert done.returncode == 0, done.stderr
    place = RunDir(f"{bucket}/jobs/job")
    await_step(place, 20)
    row = json.loads(diptych("jobs", "--json", *common).stdout)[0]
    assert (row["name"], row["state"], row["steps"]) == ("job", "running", 5000)
    family = [psutil.Process(row["pid"]), *children_of(row["pid"])]
    stopped = diptych("stop", "job", *common)
    assert "stopped at step" in stopped.stdout, stopped.stderr
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert json.loads(diptych("jobs", "--json", *common).stdout)[0]["state"] == "stopped"
    assert "attempt 1: from step 0" in diptych("logs", "job", *common).stdout
    refused(diptych("stop", "job", *common), "is not running")
    refused(diptych("logs", "jab", *common), "no run at")
