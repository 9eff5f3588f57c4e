"""How a run's folder says who is at it, read without torch, which takes seconds to import."""

import socket
import time
from typing import Any

import psutil

STOP = "stop.json"
"""`diptych stop` leaves this in the folder of a run that another machine drives."""
_SILENT_S = 60.0
_FETCH_S = 600.0
"""A cluster may need as long to make a job's environment."""


def busy(status: dict[str, Any]) -> bool:
    """Whether a run's status belongs to a driver that lives, or is about to."""
    state = status.get("state")
    if state == "submitted":
        return time.time() - status["beat"] < _FETCH_S
    if state not in ("running", "waiting"):
        return False
    if status["host"] == socket.gethostname():
        return psutil.pid_exists(status["pid"])
    return time.time() - status["beat"] < _SILENT_S
