"""One command in a fresh process: its wall and CPU time and its memory, children included."""

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one command cost."""

    code: int
    """Exit code; negative for a signal."""
    started: float
    """`time.monotonic()` just before the process was made."""
    wall_s: float
    cpu_s: float
    """User and system time of the process and all that it started."""
    peak_mib: float
    """Largest sum of proportional set sizes (PSS) seen, every half second."""
    said: str
    """The last lines of its standard error."""


def measure(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, limit_s: float
) -> Measured:
    """Runs a command to its end, or kills it and all it started after `limit_s`.

    Orphans of the command become children of this process, so that their time is counted too.
    """
    _adopt_orphans(True)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "stderr.txt"
    before = _cpu_s()
    with open(log, "wb") as said:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            peak = _watch(process, started + limit_s)
            wall_s = time.monotonic() - started
        finally:
            _end(process)
            _adopt_orphans(False)
    return Measured(
        code=process.returncode,
        started=started,
        wall_s=wall_s,
        cpu_s=_cpu_s() - before,
        peak_mib=peak / 2**20,
        said=log.read_text(errors="replace")[-2000:],
    )


def _adopt_orphans(wanted: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _watch(process: subprocess.Popen[bytes], deadline: float) -> int:
    """The largest memory of the tree, in bytes, until the process ends."""
    peak = 0
    while True:
        try:
            process.wait(_EVERY_S)
            return peak
        except subprocess.TimeoutExpired:
            peak = max(peak, _memory(process.pid))
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)


def _memory(pid: int) -> int:
    total = 0
    try:
        tree = psutil.Process(pid)
        for one in [tree, *tree.children(recursive=True)]:
            total += one.memory_full_info().pss
    except psutil.Error:
        return total  # a process ended while it was being looked at
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the command and waits for it, so that its time is counted."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
    while True:
        try:
            os.waitpid(-process.pid, 0)
        except ChildProcessError:
            return


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
