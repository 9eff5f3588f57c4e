"""A private Ray cluster of what a run needs: no watcher whose answer nobody asks for.

Ray has no options for it. What is changed here are functions of its own that it calls as it starts;
a version that has them no more starts all its processes, as ever.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from .instead import instead

_IDLE = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods that start the autoscaler of one machine, the collector of logs that are not shown, and
a dashboard without its pages: half of the seconds that Ray takes to start and to end."""


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """What Ray starts within it is no more than needed, and of process groups of its own.

    `timeout`, a shell and many schedulers send SIGTERM to the whole group: without its servers the
    run could keep no checkpoint.
    """
    node = importlib.import_module("ray._private.node").Node
    utils = importlib.import_module("ray._private.utils")
    with contextlib.ExitStack() as stack:
        for name in _IDLE:
            stack.enter_context(instead(node, name, lambda _: _nothing))
        # Called between fork and exec.
        stack.enter_context(instead(utils, "set_kill_on_parent_death_linux", _apart))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """A process that is not started."""


def _apart(bound: Any) -> Callable[[], None]:
    def bound_and_apart() -> None:
        os.setpgrp()
        bound()

    return bound_and_apart
