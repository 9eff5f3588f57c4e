"""Runs on a real Ray cluster that asks for a token: three nodes with addresses of their own.

The tests of this file tell one story, in order: a run is submitted, a node dies under it, others
wait in line, the head dies, and the bucket still answers.
"""

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.cluster import auth, code, ledger, node
from diptych.cluster.bucket import free_port
from diptych.config import to_yaml
from diptych.data import storage
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

pytestmark = pytest.mark.cluster
Tiny = Callable[..., Run]
CANARY = "canary-7206-of-nobody"
WAIT_S = 400.0


class Here:
    """The cluster of this file, and the command line towards it."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, bucket: str) -> None:
        self.home, self.patch, self.runs = home, patch, f"{bucket}/remote"
        self.port, self.dashboard = free_port(), free_port()
        self.families: list[list[psutil.Process]] = []

    def say(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, list(words), env={"COLUMNS": "300"})
        said = done.output + (str(done.exception) if done.exception else "")
        assert (done.exit_code == 0) == (code == 0), said
        return said

    def up(self, cpus: int) -> None:
        self.at("head")
        ports = [f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        self.say("up", *ports, f"--cpus={cpus}", "--gpus=0")
        self._keep()

    def join(self, number: int) -> None:
        """A node at an address of its own: 127.0.0.2 and so on."""
        self.at(f"node-{number}")
        words = ["--ip", f"127.0.0.{number}", "--cpus=1", "--gpus=0"]
        self.say("join", f"127.0.0.1:{self.port}", *words)
        self._keep()
        self.at("head")

    def at(self, name: str) -> None:
        """Each node is on a machine of its own as far as `up` and `join` can see."""
        self.patch.setenv("XDG_STATE_HOME", str(self.home / name))

    def kill(self, number: int) -> None:
        """All processes of a node at once, as when its power goes."""
        first = self.families[number][0]
        for process in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def jobs(self) -> dict[str, dict[str, Any]]:
        rows = json.loads(self.say("jobs", "--json", "--runs", self.runs))
        return {row["name"]: row for row in rows}

    def nodes(self) -> int:
        url = f"http://127.0.0.1:{self.dashboard}/nodes?view=summary"
        rows = requests.get(url, headers=auth.headers(), timeout=9).json()["data"]["summary"]
        return len([row for row in rows if row["raylet"]["state"] == "ALIVE"])

    def place(self, name: str) -> RunDir:
        return RunDir(f"{self.runs}/{name}")

    def _keep(self) -> None:
        found = node.running()
        assert found
        first = psutil.Process(found.pid)
        self.families.append([first, *first.children(recursive=True)])


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def here(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """Three nodes with a CPU each, the head one of them."""
    home = tmp_path_factory.mktemp("nodes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "secret" / "token"))
        patch.setenv("HF_TOKEN", CANARY)
        cluster = Here(home, patch, bucket)
        try:
            cluster.up(cpus=1)
            for number in (2, 3):
                cluster.join(number)
            yield cluster
        finally:
            for number in range(len(cluster.families)):
                if cluster.families[number][0].is_running():
                    cluster.kill(number)
            for family in cluster.families:
                for process in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Callable[..., str]:
    def make(name: str) -> str:
        file = tmp_path / f"{name}.yaml"
        file.write_text(to_yaml(tiny(name, "steps=100000", "checkpoint_steps=5")))
        return str(file)

    return make


def test_only_the_owner_of_the_token_gets_in(here: Here) -> None:
    path = auth.token_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    address = f"http://127.0.0.1:{here.dashboard}"
    for part in ("jobs/", "version", "packages/gcs/x.zip", "v0/logs", "cluster_status"):
        assert requests.get(f"{address}/api/{part}", timeout=9).status_code == 401, part
        wrong = {"Authorization": "Bearer 0000"}
        answer = requests.get(f"{address}/api/{part}", headers=wrong, timeout=9)
        assert answer.status_code == 403, part
    assert requests.post(f"{address}/api/jobs/", json={}, timeout=9).status_code == 401


@pytest.mark.parametrize("mine", [True, False])
def test_a_ray_address_takes_the_token_that_lies_here(here: Here, mine: bool) -> None:
    """As `--cluster HOST:PORT` and `train --ray HOST:PORT` meet it; nobody says RAY_AUTH_MODE."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    env |= {} if mine else {"RAY_AUTH_TOKEN_PATH": str(here.home / "nowhere")}
    ask = f"remote.dashboard('127.0.0.1:{here.port}')"
    words = ["-P", "-c", f"from diptych.cluster import remote; print({ask})"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env)
    if mine:
        assert done.stdout.strip() == f"http://127.0.0.1:{here.dashboard}", done.stderr
    else:
        assert "lets this process in" in done.stderr and "nowhere" in done.stderr


def test_the_dashboard_listens_on_loopback(here: Here) -> None:
    heard: list[Any] = [one for one in psutil.net_connections() if one.status == "LISTEN"]
    [ours] = {one.laddr.ip for one in heard if one.laddr.port == here.dashboard}
    assert ours == "127.0.0.1"


def test_a_wrong_token_is_one_sentence(here: Here, recipe: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
        words = ["submit", recipe("x"), "--cluster", "auto", "--runs", here.runs]
        assert "wants a token, and the token here is not its" in here.say(*words, code=2)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
        assert "wants a token, and there is none at" in here.say(*words, code=2)
    assert stat.S_IMODE(other.stat().st_mode) == 0o600  # it was 0644
    assert not storage.exists(f"{here.runs}/x/run.json")


def test_a_run_on_three_nodes(here: Here, recipe: Any) -> None:
    """It is there within a minute; its code is the wheel's; nothing secret went along."""
    address = f"http://127.0.0.1:{here.dashboard}"
    shape = ["--shape-set=workers=3", "--shape-set=min_workers=2", "--shape-set=wait_s=10"]
    words = ["submit", recipe("a"), "--set=batch=24", "--cluster", address, "--runs", here.runs]
    until(lambda: here.nodes() == 3, "three nodes")
    said = here.say(*words, *shape)
    assert f"{here.runs}/a on {address}" in said
    place = here.place("a")
    until(lambda: place.json("status.json")["step"] >= 5, "step 5")
    assert here.jobs()["a"]["state"] == "running"
    until(lambda: ledger.attempts(place)[-1].world == 3, "three workers")
    assert place.json("submission.json")["digest"] == code.identity().digest
    until(lambda: "from step 0 on" in here.say("logs", "a", "--runs", here.runs), "logs")
    assert "is being run by process" in here.say(*words, *shape, code=2)


def test_no_secret_is_anywhere(here: Here) -> None:
    """Not in what the cluster tells of the job, its logs, its processes, or the run's folder."""
    secrets = [CANARY, os.environ["AWS_SECRET_ACCESS_KEY"], auth.token_path().read_text()]
    told = requests.get(
        f"http://127.0.0.1:{here.dashboard}/api/jobs/", headers=auth.headers(), timeout=9
    ).text
    assert "gcs://diptych-" in told
    files = [path for path in here.home.rglob("*.log") if path.is_file()]
    for family in here.families:  # the session folder of each node of this very cluster
        folders = [word for word in family[1].cmdline() if "/session_" in word]
        session = Path("/".join(folders[0].partition("=")[2].split("/")[:4]))
        files += [path for path in session.rglob("*") if path.is_file() and path.stat().st_size]
    assert any("runtime_env" in path.name for path in files)
    kept = [f"{here.place('a').url}/{name}" for name in storage.children(here.place("a").url)]
    kept = [url for url in kept if storage.exists(url)]
    assert len(kept) > 5
    spoken: list[str] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended
            spoken.append(" ".join(process.cmdline()))
    assert any("diptych.cluster.entry" in line for line in spoken)
    for secret in secrets:
        assert secret not in told
        assert not [line for line in spoken if secret in line]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [url for url in kept if secret.encode() in storage.read(url)]


def test_a_node_dies_and_the_run_goes_on(here: Here) -> None:
    place = here.place("a")
    here.kill(2)
    until(lambda: [one.world for one in ledger.attempts(place)][-1] == 2, "two workers")
    start = ledger.attempts(place)[-1].start
    until(lambda: place.json("status.json")["step"] > start + 5, "another step")


def test_others_wait_in_line(here: Here, recipe: Any) -> None:
    """Of two, the one of higher priority is first; the other is taken out again."""
    common = ["--cluster", "auto", "--runs", here.runs]
    assert "waiting, place 1 in line for 2 CPUs" in here.say("submit", recipe("b"), *common)
    here.say("submit", recipe("c"), *common, "--priority", "5")
    rows = here.jobs()
    assert [rows[name]["state"] for name in "abc"] == ["running", "waiting", "waiting"]
    assert "place 2 of 2 in line" in rows["b"]["note"]
    assert "place 1 of 2 in line for 2 CPUs, priority 5" in rows["c"]["note"]
    said = here.say("stop", "b", "--runs", here.runs)
    assert "removed from the line; no step was taken" in said
    rows = here.jobs()
    assert rows["b"]["state"] == "stopped"
    assert "place 1 of 1" in rows["c"]["note"]


def test_a_dead_driver_does_not_hold_up_the_line(here: Here) -> None:
    """c was first; its driver dies; a ends; b, which comes after c, begins."""
    psutil.Process(here.jobs()["c"]["pid"]).kill()
    until(lambda: here.jobs()["c"]["state"] == "lost", "c is lost")
    said = here.say("resume", "b", "--cluster", "auto", "--runs", here.runs)
    assert "waiting, place 2 in line" in said or "waiting, place 1 in line" in said
    began = time.monotonic()
    assert "stopped at step" in here.say("stop", "a", "--runs", here.runs)
    assert time.monotonic() - began < 15
    until(lambda: here.place("b").json("status.json")["step"] >= 5, "step 5 of b")


def test_the_head_dies_and_the_bucket_answers(here: Here) -> None:
    until(lambda: "attempt 1" in here.say("logs", "b", "--runs", here.runs), "logs of b")
    here.kill(0)
    until(lambda: here.jobs()["b"]["state"] == "lost", "b is lost")
    assert "attempt 1: from step 0" in here.say("logs", "b", "--runs", here.runs)
    here.up(cpus=1)
    rows = here.jobs()
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "stopped",
        "b": "lost",
        "c": "lost",
    }
    assert rows["b"]["step"] >= 5
    assert "attempt 1: from step 0" in here.say("logs", "b", "--runs", here.runs)
    assert "b is not running (it is lost)" in here.say("stop", "b", "--runs", here.runs, code=2)


def test_other_code_is_refused_on_the_cluster(here: Here, tmp_path: Path) -> None:
    words = ["-P", "-m", "diptych.cluster.entry", here.place("b").url, "0" * 16, "0"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert f"other code (digest {code.identity().digest}, version" in done.stdout
    assert "than was submitted (digest 0000000000000000)" in done.stdout
    assert here.jobs()["b"]["state"] == "failed"
