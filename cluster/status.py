"""How a run's folder says who is at it, read without torch, which takes seconds to import."""

import os
import socket
import time
from typing import Any

import psutil

STOP = "stop.json"
"""`diptych stop` leaves this in the folder of a run that another machine drives."""
AT_IT = ("running", "waiting", "submitted")
"""States of a run that has not ended; `lost` is one of these whose driver does not live."""
_SILENT_S = 60.0
_FETCH_S = 600.0
"""A cluster may need as long to make a job's environment."""
_SAME_S = 2.0
"""The time that a process began is counted from the boot, which is known to a second."""


def here() -> dict[str, Any]:
    """This process, as a status names the driver of a run."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": psutil.Process().create_time(),
    }


def driver(status: dict[str, Any]) -> psutil.Process | None:
    """The process on this machine that a status names, if it lives and is still the same one."""
    born = status.get("born")
    if born is None and status["pid"] == os.getpid():
        return None  # an older run's driver had this number, before the machine was restarted
    try:
        process = psutil.Process(status["pid"])
        same = born is None or abs(process.create_time() - born) < _SAME_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def busy(status: dict[str, Any]) -> bool:
    """Whether a run's status belongs to a driver that lives, or is about to."""
    state = status.get("state")
    if state == "submitted":
        return time.time() - status["beat"] < _FETCH_S
    if state not in ("running", "waiting"):
        return False
    if status["host"] == socket.gethostname():
        return driver(status) is not None
    return time.time() - status["beat"] < _SILENT_S
