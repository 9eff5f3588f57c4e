"""What `submit` refuses and sends, and who is next in line. No cluster: see test_remote.py."""

import http.server
import json
import os
import shlex
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.cluster import auth, code, entry, jobs, line, remote, status
from diptych.cluster.again import require_another, shape_again
from diptych.cluster.line import Room, Ticket
from diptych.cluster.shapes import Shape, find_shape
from diptych.cluster.status import busy
from diptych.config import to_yaml
from diptych.data import storage
from diptych.errors import ClusterError, RecipeError, RunError, Stopped
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

Dashboard = Callable[[int], str]


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    """`dashboard(200)`: the address of a server that answers every request so."""
    servers: list[http.server.HTTPServer] = []

    def make(status: int) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert "Authorization" not in self.headers  # asked without the token
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/login")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"[]")

            def log_message(self, format: str, *_: Any) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_says_no_is_locked(status: int, dashboard: Dashboard) -> None:
    auth.require_locked(dashboard(status))


def test_a_cluster_that_asks_for_no_token_is_refused(dashboard: Dashboard) -> None:
    open_ = dashboard(200)
    with pytest.raises(ClusterError, match=r"asks nobody for a token.*--insecure-cluster"):
        auth.require_locked(open_)
    auth.require_locked(open_, insecure=True)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_what_is_no_dashboard_is_refused(status: int, dashboard: Dashboard) -> None:
    with pytest.raises(ClusterError, match=f"status {status}: not the dashboard"):
        auth.require_locked(dashboard(status), insecure=True)


def test_where_nobody_listens() -> None:
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at .*ssh -L"):
        auth.require_locked("http://127.0.0.1:9")


@pytest.mark.parametrize(
    "address",
    [
        "pipe:touch x",
        "file:///etc/passwd",
        "ray://h:10001",
        "h",
        "h:x",
        "$(touch x):1",
        "h:1/x",
        "",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="say `local`"):
        remote.dashboard(address)


def test_addresses() -> None:
    assert remote.dashboard("https://ray.example.org/") == "https://ray.example.org"
    assert auth.in_clear("http://10.0.0.1:8265")
    assert not auth.in_clear("https://10.0.0.1")
    assert not auth.in_clear("http://127.0.0.1:8265")
    with pytest.raises(ClusterError, match="password in it"):
        remote.dashboard("http://me:canary-1@h:8265")


def test_a_token_is_drawn_once_and_for_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert auth.headers() == {}
    old = os.umask(0)
    try:
        assert auth.ensure_token() == path
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert len(first) == 64
    path.chmod(0o644)
    auth.ensure_token()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (first, 0o600)
    assert auth.headers() == {"Authorization": f"Bearer {first}"}
    path.write_text(" \n")
    with pytest.raises(ClusterError, match="is empty"):
        auth.headers()


class Ray:
    """Takes a job and shows it as failed at once."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.stopped = ""

    def submit_job(self, **job: Any) -> None:
        with zipfile.ZipFile(job["runtime_env"]["py_modules"][0]) as wheel:
            assert not [n for n in wheel.namelist() if not n.startswith("diptych")]
        self.jobs.append(job)

    def stop_job(self, name: str) -> None:
        self.stopped = name

    def get_job_status(self, name: str) -> JobStatus:
        return JobStatus.FAILED

    def get_job_info(self, name: str) -> Any:
        return type("Info", (), {"message": "no python here"})

    def get_job_logs(self, name: str) -> str:
        return "sh: python: not found"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Ray:
    ray = Ray()
    monkeypatch.setattr(remote, "client", lambda address, insecure: ray)
    return ray


def test_what_a_job_is_told(
    taken: Ray, small: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run's URL, even a hostile one, is one word of its command; nothing secret is in it."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "canary-3141")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    place = RunDir(f"file://{tmp_path}/$(touch {tmp_path}/canary); `touch x` 'a")
    with pytest.raises(ClusterError, match="ended before it began: no python here sh: python"):
        remote.submit(small(), place, "http://h:8265", priority=3)
    [job] = taken.jobs
    assert job["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL"] == "https://s3.example.org"
    assert set(job["runtime_env"]["env_vars"]) <= set(remote._TELL)
    assert "canary-3141" not in str(job)
    words = ["-P", "-m", "diptych.cluster.entry", place.url, code.identity().digest, "3"]
    assert shlex.split(job["entrypoint"]) == ["python", *words]
    show = job["entrypoint"].replace("python -P -m diptych.cluster.entry", "printf '%s|'")
    said = subprocess.run(["bash", "-c", show], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.split("|")[0] == place.url
    assert not (tmp_path / "canary").exists()
    assert place.json("status.json")["state"] == "failed"
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"canary-3141" not in kept


def test_an_endpoint_with_a_password_is_refused(
    taken: Ray, small: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:canary-2718@s3.example.org")
    with pytest.raises(ClusterError, match="AWS_ENDPOINT_URL has a password") as said:
        remote.submit(small(), RunDir(f"file://{tmp_path}/r"), "http://h:8265")
    assert "canary-2718" not in str(said.value)
    assert not taken.jobs
    assert RunDir(f"file://{tmp_path}/r").json("status.json") == {}, "nothing was submitted"


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run on another machine, whose driver has just shown for the last time that it lives."""
    monkeypatch.setattr(jobs, "_GRACE_S", 1.0)
    monkeypatch.setattr(status, "_SILENT_S", 1.0)
    place = RunDir(storage.absolute(str(tmp_path / "far")))
    place.put("run.json", {})
    place.put("submission.json", {"id": "diptych-far-1"})
    known = {"state": "running", "note": "", "step": 7, "steps": 9, "pid": 5}
    place.put("status.json", {**known, "host": "ray-head", "beat": time.time()})
    return place


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ("", "a ok b ok", "a ok b ok"),
        ("a ok b ok", "a ok b ok", ""),
        ("a ok", "a ok ok", "ok"),
        ("a ok b ok", "ok b ok c", "c"),  # the first one is forgotten
        ("a b", "c d", "c d"),
        ("a ok", "ok", ""),
    ],
)
def test_a_line_of_a_log_is_shown_once(before: str, now: str, new: str) -> None:
    assert jobs._new(before.split(), now.split()) == new.split()


def test_a_followed_log_is_shown_once(far: RunDir) -> None:
    storage.write(far.at("logs/rank-0.log"), b"1 a\n2 ok\n1 b\n2 ok\n")
    shown = ["rank-0  1 a", "rank-0  2 ok", "rank-0  1 b", "rank-0  2 ok"]
    assert list(jobs.logs(far, follow=True)) == shown


def test_a_silent_driver_has_not_ended(far: RunDir) -> None:
    assert "ray-head has not answered for 1 s. `--cluster ADDRESS`" in jobs.stop(far)
    with pytest.raises(RunError, match=r"is not running \(it is lost\)"):
        jobs.stop(far)


@pytest.mark.parametrize("wait_s", [0.0, 1.0], ids=["silent", "lost"])
def test_a_silent_driver_is_ended_through_the_cluster(
    far: RunDir, taken: Ray, wait_s: float
) -> None:
    time.sleep(wait_s)
    words = ["stop", far.url, "--cluster", "http://h:8265", "--insecure-cluster"]
    done = CliRunner().invoke(app, words)
    assert done.output.strip() == "killed through the cluster", done.exception
    assert taken.stopped == "diptych-far-1"
    assert far.json("status.json")["state"] == "stopped"
    assert far.json("status.json")["step"] == 7
    done = CliRunner().invoke(app, words)
    assert "is not running (it is stopped)" in str(done.exception or done.output)


def test_a_driver_that_answers_is_not_forced(far: RunDir) -> None:
    far.put("status.json", far.json("status.json") | {"beat": time.time() + 60})
    answer = far.json("status.json") | {"state": "stopped", "step": 8}
    timer = threading.Timer(0.1, far.put, ("status.json", answer))
    timer.start()
    assert jobs.stop(far, force=lambda: pytest.fail("forced")) == "stopped at step 8"
    timer.join()


def test_the_wheel_is_this_code(tmp_path: Path) -> None:
    """Installed alone, it is what it says; written again, it is the same bytes."""
    wheel = code.wheel(tmp_path)
    assert code.identity().digest in wheel.name
    (tmp_path / "again").mkdir()
    assert code.wheel(tmp_path / "again").read_bytes() == wheel.read_bytes()
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target"]
    where = tmp_path / "there"
    done = subprocess.run([*words, str(where), str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ask = "from diptych.cluster.code import ROOT, identity; print(ROOT, *identity())"
    env = {**os.environ, "PYTHONPATH": str(where)}
    said = subprocess.check_output([sys.executable, "-P", "-c", ask], env=env, text=True)
    assert said.split() == [str(where / "diptych"), *code.identity()]


def ticket(name: str, **known: Any) -> Ticket:
    values = {"cluster": "c", "priority": 0, "asked": 1.0, "cpus": 2, "gpus": 0}
    return Ticket(**{"url": name, **values, "begun": False, "beat": time.time(), **known})


ALL, FREE = Room(4, 0), Room(4, 0)


def test_who_is_next() -> None:
    one, two = ticket("one"), ticket("two", asked=2.0)
    urgent = ticket("urgent", asked=3.0, priority=1)
    everyone = [urgent, one, two]
    assert [line.ahead(each, everyone) for each in (urgent, one, two)] == [0, 1, 2]
    assert line.may_begin(urgent, everyone, ALL, FREE)
    assert not line.may_begin(one, everyone, ALL, FREE)
    other = ticket("other", cluster="d", asked=9.0)
    assert line.may_begin(other, [*everyone, other], ALL, FREE)


def test_who_has_begun_keeps_its_room() -> None:
    """Even while Ray still shows it as free."""
    begun, next_ = ticket("one", begun=True, cpus=3), ticket("two", asked=2.0)
    assert not line.may_begin(next_, [begun, next_], ALL, FREE)
    assert line.may_begin(next_, [begun._replace(cpus=2), next_], ALL, FREE)
    assert not line.may_begin(next_, [next_], ALL, Room(1, 0))
    assert not line.may_begin(next_._replace(gpus=1), [next_], ALL, FREE)


def test_a_large_run_is_not_overtaken() -> None:
    large, little = ticket("large", cpus=9), ticket("little", asked=2.0, cpus=1)
    assert not line.may_begin(little, [large, little], ALL, FREE)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A cluster without room, looked at often; the list holds what its autoscaler is asked for."""
    asked: list[Any] = []
    monkeypatch.setattr(line, "_LOOK_S", 0.01)
    monkeypatch.setattr(line, "_rooms", lambda: (Room(1, 0), Room(0, 0)))
    monkeypatch.setattr(line, "request_resources", lambda bundles: asked.append(bundles))
    yield asked


def waited(place: RunDir, run: Run, shape: Shape, seconds: float) -> set[float]:
    """Waits as a submitted run does; returns when it showed that it lives."""
    beats: set[float] = set()
    end = time.monotonic() + seconds

    def stopping() -> bool:
        beats.add(place.json("status.json").get("beat", 0.0))
        return time.monotonic() > end

    with pytest.raises(Stopped), line.Waiting(place, run, shape, "c") as waiting:
        waiting.wait(stopping, entry._teller(place, run))
    return beats - {0.0}


def test_who_waits_shows_that_it_lives(
    full: list[Any],
    small: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(line, "_TELL_S", 0.1)
    place = RunDir(storage.absolute(str(tmp_path / "mine")))
    assert len(waited(place, small(), Shape(workers=2), 0.8)) > 2
    assert capsys.readouterr().out == "place 1 in line for 2 CPUs\n", "said once"
    assert busy(place.json("status.json"))


def test_nodes_that_were_asked_for_are_given_back_at_the_end(
    full: list[Any],
    small: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line, "_TELL_S", 0.1)
    place, two = RunDir(storage.absolute(str(tmp_path / "mine"))), [{"CPU": 1}] * 2
    waited(place, small(), Shape(workers=2), 0.5)  # and then it is stopped
    assert full[:2] == [two, two], "again, for another run's end may have taken it back"
    assert full.index([]) == len(full) - 1

    full.clear()
    with line.Waiting(place, small(), Shape(workers=2), "c") as waiting:
        rooms = iter([(Room(1, 0), Room(1, 0)), (Room(2, 0), Room(2, 0))])
        monkeypatch.setattr(line, "_rooms", lambda: next(rooms))
        waiting.wait(lambda: False, lambda _: None)
        assert full == [two], "they are kept while the run has them"
    assert full == [two, []]

    full.clear()
    with line.Waiting(place, small(), Shape(workers=2), "c") as waiting:
        monkeypatch.setattr(line, "_rooms", lambda: (Room(2, 0), Room(2, 0)))
        waiting.wait(lambda: False, lambda _: None)
    assert full == [], "not asked for, not taken back"


def test_an_elastic_run_waits_for_the_fewest_workers_that_it_can_have(
    full: list[Any], small: Callable[..., Run], tmp_path: Path
) -> None:
    """128 rows cannot be cut among three."""
    run, shape = small("batch=128"), Shape(workers=4, min_workers=3, cpus_per_worker=2)
    place = RunDir(storage.absolute(str(tmp_path / "mine")))
    waited(place, run, shape, 0.1)
    assert place.json("status.json")["note"] == "place 1 in line for 8 CPUs"
    assert full == [[{"CPU": 2}] * 4, []]
    waited(place, run, shape.model_copy(update={"min_workers": 1}), 0.1)
    assert place.json("status.json")["note"] == "place 1 in line for 2 CPUs"


def test_more_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(RecipeError, match="min_workers 4 is more than workers 2"):
        find_shape("pair", ["min_workers=4"])


def test_dead_and_damaged_tickets_count_no_more(tmp_path: Path) -> None:
    runs = f"file://{tmp_path}"
    folder = storage.join(runs, line.LINE)
    for each in (ticket("dead", beat=time.time() - 60), ticket("alive")):
        storage.write(f"{folder}/{each.url}.json", json.dumps(each._asdict()).encode())
    storage.write(f"{folder}/half.json", b'{"url": "ha')
    storage.write(f"{folder}/odd.json", b'{"name": 3}')
    assert [one.url for one in line.tickets(runs)] == ["alive"]
    assert jobs.jobs(runs) == []


def test_resume_takes_the_shape_that_it_had(small: Callable[..., Run], tmp_path: Path) -> None:
    run, place = small("steps=40"), RunDir(f"file://{tmp_path}/r")
    assert shape_again(place, run, None, []) == Shape()
    storage.write(place.at("shape.yaml"), to_yaml(Shape(workers=4)).encode())
    assert shape_again(place, run, None, []).workers == 4
    assert shape_again(place, run, None, ["zero_stage=2"]) == Shape(workers=4, zero_stage=2)
    assert shape_again(place, run, "one", []).workers == 1
    line.status(place, "finished", steps=40)
    with pytest.raises(RunError, match=r"nothing is left to resume.*--start-from file.*--run NAME"):
        shape_again(place, run, None, [])


def test_a_run_does_not_start_from_itself(small: Callable[..., Run], tmp_path: Path) -> None:
    run = small(f"start_from=file://{tmp_path}/r")
    with pytest.raises(RunError, match=r"its own weights. To go on with it: diptych resume file"):
        require_another(run, f"file://{tmp_path}/r/")
    require_another(run, f"file://{tmp_path}/s")
