"""The runs below a folder: what they are doing, what they said, and how to end one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ..data import storage
from ..errors import ClusterError, RunError
from ..pretrain.rundir import RunDir
from .track import STOP
from .train import busy

_GRACE_S = 60.0


class JobLine(NamedTuple):
    """One run, as `diptych jobs` shows it."""

    name: str
    state: str
    step: int
    steps: int
    host: str
    pid: int
    url: str
    note: str


def jobs(root: str) -> list[JobLine]:
    """All runs directly below a folder."""
    root = storage.absolute(root)
    storage.require_bucket(root)
    found = [RunDir(storage.join(root, child)) for child in storage.children(root)]
    return [_line(place, status) for place in found if (status := place.json("status.json"))]


def find(run: str, root: str) -> RunDir:
    """The run at a URL, or of a name below the root.

    Raises:
        RunError: there is none.
    """
    places = [RunDir(storage.absolute(run))]
    if "/" not in run:
        places.append(RunDir(storage.join(storage.absolute(root), run)))
    for place in places:
        storage.require_bucket(place.url)
        if storage.exists(place.at("run.json")):
            return place
    raise RunError(
        f"no run at {' or '.join(place.url for place in places)}. "
        "`diptych jobs --runs FOLDER` lists those of a folder."
    )


def submit(arguments: list[str], place: RunDir) -> int:
    """Starts `diptych train` with the arguments in the background; returns its process id."""
    log = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "diptych"
    log.mkdir(parents=True, exist_ok=True)
    output = log / f"{place.name}-{int(time.time())}.log"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "diptych", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClusterError(f"the run ended at once: {output.read_text().strip()[-600:]}")
        if busy(place.json("status.json")):
            return process.pid
        time.sleep(0.3)
    raise ClusterError(f"the run did not begin within {_GRACE_S:.0f} s; see {output}.")


def logs(place: RunDir, *, follow: bool) -> Iterator[str]:
    """The lines of all logs of a run; with `follow`, on until it ends."""
    seen: dict[str, str] = {}
    while True:
        running = busy(place.json("status.json"))
        for name in storage.children(place.at("logs")):
            lines = storage.read(place.at("logs", name)).decode().splitlines()
            last = seen.get(name)
            first = lines.index(last) + 1 if last in lines else 0
            for line in lines[first:]:
                yield f"{name.removesuffix('.log')}  {line}"
            if lines:
                seen[name] = lines[-1]
        if not (follow and running):
            return
        time.sleep(1.0)


def stop(place: RunDir) -> str:
    """Asks a run to keep a checkpoint and end; returns what came of it.

    Raises:
        RunError: it is not running.
    """
    status = place.json("status.json")
    if not busy(status):
        raise RunError(f"{place.url} is not running (it is {status.get('state', 'not begun')}).")
    if status["host"] != socket.gethostname():
        place.put(STOP, {"asked": time.time()})
        return f"asked {status['host']} to stop; it answers within seconds"
    os.kill(status["pid"], signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and psutil.pid_exists(status["pid"]):
        if psutil.Process(status["pid"]).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.2)
    else:
        if psutil.pid_exists(status["pid"]):
            os.kill(status["pid"], signal.SIGKILL)
            return f"killed: process {status['pid']} did not end within {_GRACE_S:.0f} s"
    return f"stopped at step {place.json('status.json')['step']}"


def _line(place: RunDir, status: dict[str, Any]) -> JobLine:
    state = status["state"]
    if state == "running" and not busy(status):
        state = "lost"  # its driver died without a word; `train` goes on from the checkpoint
    known = {name: status[name] for name in ("step", "steps", "host", "pid", "note")}
    return JobLine(name=place.name, state=state, url=place.url, **known)
