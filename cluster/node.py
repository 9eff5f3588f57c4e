"""This machine as a node of a Ray cluster that asks for a token: `up`, `join`, `down`."""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import requests
from ray.util import get_node_ip_address

from ..errors import ClusterError
from . import auth
from .bucket import free_port

_BEGIN_S = 120.0
_TRIES = 3
_END_S = 20.0


class Node(NamedTuple):
    """What `up` and `join` leave on record for `down`, `submit` and `join`."""

    pid: int
    born: float
    """When that process began, so that another with its number is not taken for it."""
    gcs: str
    """What other nodes join."""
    dashboard: str
    """What jobs are submitted to; empty on a node that joined."""
    log: str


def up(
    *,
    ip: str | None,
    port: int,
    dashboard_host: str,
    dashboard_port: int,
    cpus: int | None,
    gpus: int | None,
) -> Node:
    """Starts the head of a cluster here. Only who has the token can use it.

    Raises:
        ClusterError: there is a node of ours already, a port is taken, or Ray does not start.
    """
    words = ["--head", f"--port={port}", "--include-dashboard=true"]
    words += [f"--ray-client-server-port={free_port()}"]  # ours not to use, nor to collide with
    words += [f"--dashboard-host={dashboard_host}", f"--dashboard-port={dashboard_port}"]
    shown = "127.0.0.1" if dashboard_host in ("127.0.0.1", "0.0.0.0") else dashboard_host
    auth.ensure_token()
    address = f"http://{shown}:{dashboard_port}"
    words += _has(ip, cpus, gpus)
    return _insist(
        words, f"{ip or get_node_ip_address()}:{port}", address, f"{address}/api/gcs_healthz"
    )


def join(head: str, *, ip: str | None, cpus: int | None, gpus: int | None) -> Node:
    """Makes this machine a node of the cluster whose head is at `head` (host:port).

    Raises:
        ClusterError: there is no token here, the head does not answer, or Ray does not start.
    """
    if not auth.headers():
        raise ClusterError(
            f"no token at {auth.token_path()}. Copy it from the head, readable by you alone: "
            f"mkdir -p -m 700 ~/.ray && scp {head.rpartition(':')[0]}:.ray/auth_token ~/.ray/ && "
            "chmod 600 ~/.ray/auth_token"
        )
    return _insist([f"--address={head}", *_has(ip, cpus, gpus)], head, "", "")


def down() -> str:
    """Ends the node that `up` or `join` started here, and nothing else.

    Raises:
        ClusterError: there is none.
    """
    node = running()
    if node is None:
        raise ClusterError("no node runs here that `diptych up` or `diptych join` started.")
    psutil.Process(node.pid).send_signal(signal.SIGTERM)
    count = _end(node.pid)
    _record().unlink(missing_ok=True)
    return f"ended {count} processes of the node at {node.gcs}"


def _end(pid: int) -> int:
    """Waits for all processes of a node, and ends those that stay; they share a session."""
    family: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):  # it has just ended, or is hidden from us
            if os.getsid(process.pid) == pid:
                family.append(process)
    _, alive = psutil.wait_procs(family, timeout=_END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_END_S)
    return len(family)


def running() -> Node | None:
    """The node of ours on this machine, if it lives."""
    try:
        node = Node(**json.loads(_record().read_text()))
        process = psutil.Process(node.pid)
        same = abs(process.create_time() - node.born) < 1
        return node if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    except (ValueError, TypeError) as err:
        raise ClusterError(f"{_record()} is damaged ({err}). Delete it.") from err


def state() -> Path:
    """A folder of this user's for what runs on this machine."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    path = Path(home) / "diptych"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _record() -> Path:
    return state() / f"node-{socket.gethostname()}.json"  # a home may be shared by machines


def _has(ip: str | None, cpus: int | None, gpus: int | None) -> list[str]:
    pairs = {"node-ip-address": ip, "num-cpus": cpus, "num-gpus": gpus}
    return [f"--{name}={value}" for name, value in pairs.items() if value is not None]


def _insist(words: list[str], gcs: str, dashboard: str, healthy: str) -> Node:
    """Starts a node; on a busy machine Ray's own patience, 30 s, may be too short once or twice."""
    for more in reversed(range(_TRIES)):
        node = _start(words, gcs, dashboard)
        try:
            _await(node, healthy)
            return node
        except ClusterError as err:
            if not more or "timed out during startup" not in str(err):
                raise
    raise AssertionError("the last try returns or raises")


def _start(words: list[str], gcs: str, dashboard: str) -> Node:
    if there := running():
        raise ClusterError(
            f"a node runs here already, of the cluster at {there.gcs}. `diptych down` ends it."
        )
    log = state() / f"node-{int(time.time())}.log"
    bin_ = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(auth.token_path()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # ranks are what the machine is for
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Jobs say `python` and Ray says `pip`: those of this environment.
        "PATH": os.pathsep.join([bin_, os.environ.get("PATH", "")]),
    }
    environment.pop("RAY_ADDRESS", None)
    # A folder of its own: Ray's jobs connect to the newest cluster of the folder that they are in,
    # and nodes that share one install the same wheel at once, over each other.
    words = [*words, f"--temp-dir={tempfile.gettempdir()}/diptych-{os.getuid()}-{time.time_ns()}"]
    # Any port will do, so that another Ray on this machine is in nobody's way.
    words = [*words, "--min-worker-port=0", "--max-worker-port=0"]
    words += ["--dashboard-agent-listen-port=0"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    out = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    both = (os.POSIX_SPAWN_DUP2, 1, 2)
    pid = os.posix_spawn(
        sys.executable, command, environment, file_actions=[null, out, both], setsid=True
    )
    born = psutil.Process(pid).create_time()
    node = Node(pid, born, gcs, dashboard, str(log))
    _record().write_text(json.dumps(node._asdict()))
    return node


def _await(node: Node, healthy: str) -> None:
    """Waits until Ray says that it started, and answers."""
    deadline = time.monotonic() + _BEGIN_S
    while time.monotonic() < deadline and running():
        text = Path(node.log).read_text() if Path(node.log).exists() else ""
        if "Ray runtime started" in text and (not healthy or _answers(healthy)):
            return
        time.sleep(0.2)
    if running():
        psutil.Process(node.pid).send_signal(signal.SIGTERM)
    _end(node.pid)  # `ray start` may have died and left its raylet
    _record().unlink(missing_ok=True)
    said = " ".join(Path(node.log).read_text().split())[-500:]
    raise ClusterError(f"Ray did not start; {node.log} ends with: {said}")


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False
