"""The runs below a folder: what they are doing, what they said, and how to end one."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data import storage
from ..errors import ClusterError, RunError
from ..pretrain.rundir import RunDir
from . import line
from .node import state
from .shapes import Shape
from .status import AT_IT, STOP, busy, driver

if TYPE_CHECKING:  # torch takes seconds
    from ..pretrain.run import Run

_GRACE_S = 60.0
_BEGIN_S = 240.0
"""A busy machine takes long to import torch."""


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
    told = _places(root)
    return [
        _line(place, status, told.get(place.url, ""))
        for place in found
        if (status := place.json("status.json"))
    ]


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


def submit(run: "Run", shape: Shape, url: str) -> tuple[RunDir, int]:
    """Starts a driver of its own on this machine, in the background, with Ray to itself.

    Returns (the run's folder, the driver's process id).

    Raises:
        DiptychError: what is wrong with the run, or why it ended at once.
    """
    from ..pretrain.settle import settled
    from .train import prepare

    place, _ = prepare(settled(run), shape, url)
    output = state() / f"{place.name}-{int(time.time())}.log"
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "diptych", "resume", place.url],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + _BEGIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClusterError(f"the run ended at once: {output.read_text().strip()[-600:]}")
        status = place.json("status.json")
        if busy(status) and status["pid"] == process.pid:
            return place, process.pid
        time.sleep(0.3)
    raise ClusterError(f"the run did not begin within {_BEGIN_S:.0f} s; see {output}.")


def logs(place: RunDir, *, follow: bool) -> Iterator[str]:
    """The lines of all logs of a run; with `follow`, on until it ends."""
    seen: dict[str, list[str]] = {}
    while True:
        running = busy(place.json("status.json"))
        for name in storage.children(place.at("logs")):
            lines = storage.read(place.at("logs", name)).decode().splitlines()
            for text in _new(seen.get(name, []), lines):
                yield f"{name.removesuffix('.log')}  {text}"
            seen[name] = lines
        if not (follow and running):
            return
        time.sleep(1.0)


def _new(before: list[str], now: list[str]) -> list[str]:
    """What a log says that it has not said before; it forgets its first lines as it grows."""
    same = min(len(before), len(now))
    while before[len(before) - same :] != now[:same]:
        same -= 1
    return now[same:]


def stop(place: RunDir, *, force: Callable[[], None] | None = None) -> str:
    """Asks a run to keep a checkpoint and end; returns what came of it.

    Args:
        force: ends a driver on another machine that does not answer, or is lost.

    Raises:
        RunError: it is not running.
    """
    status = place.json("status.json")
    if busy(status) and status["host"] == socket.gethostname():
        return _terminate(place, status)
    if busy(status):
        if said := _ask(place):
            return said
    elif not (force and _state(status) == "lost"):
        raise RunError(f"{place.url} is not running (it is {_state(status)}).")
    if force:
        force()
        return "killed through the cluster"
    return (
        f"{status['host']} has not answered for {_GRACE_S:.0f} s. "
        "`--cluster ADDRESS` ends it by force."
    )


def _terminate(place: RunDir, status: dict[str, Any]) -> str:
    if process := driver(status):
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    while (process := driver(status)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if process:
        process.kill()
        return f"killed: process {process.pid} did not end within {_GRACE_S:.0f} s"
    return _ended(place.json("status.json"))


def _ask(place: RunDir) -> str:
    """Leaves word for a driver on another machine, which looks for it every second.

    Returns its answer; empty where there was none. A driver that is silent has not ended.
    """
    place.put(STOP, {"asked": time.time()})
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        status = place.json("status.json")
        if status["state"] == "submitted":
            return "asked; the run ends as soon as its job begins"
        if status["state"] not in AT_IT:
            return _ended(status)
        time.sleep(0.3)
    return ""


def _ended(status: dict[str, Any]) -> str:
    if status["note"] == "removed from the line":
        return "removed from the line; no step was taken"
    if status["state"] in AT_IT:
        return f"its process died without a word, after step {status['step']}"
    return f"{status['state']} at step {status['step']}"


def _state(status: dict[str, Any]) -> str:
    if status.get("state") in AT_IT and not busy(status):
        return "lost"  # its driver died without a word; `resume` goes on from the checkpoint
    return status.get("state", "not begun")


def _line(place: RunDir, status: dict[str, Any], note: str) -> JobLine:
    known = {name: status[name] for name in ("step", "steps", "host", "pid")}
    return JobLine(
        name=place.name,
        state=_state(status),
        url=place.url,
        note=note or status["note"],
        **known,
    )


def _places(root: str) -> dict[str, str]:
    """What to say of every run that waits, by its URL."""
    waiting = [ticket for ticket in line.tickets(root) if not ticket.begun]
    said: dict[str, str] = {}
    for ticket in waiting:
        same = [one for one in waiting if one.cluster == ticket.cluster]
        needs = f"for {ticket.cpus:g} CPUs" + (f" and {ticket.gpus:g} GPUs" if ticket.gpus else "")
        place = f"place {line.ahead(ticket, same) + 1} of {len(same)} in line {needs}"
        said[ticket.url] = f"{place}, priority {ticket.priority}"
    return said
