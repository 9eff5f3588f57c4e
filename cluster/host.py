"""A Ray actor that holds the resources of one rank and gives it a process, again and again.

The process is forked from a template that has torch and DeepSpeed imported, so a new one is there
within milliseconds, and clean; and whatever becomes of it, the host can say what it was doing.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from math import inf
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any, ClassVar

import psutil
import ray

from .birth import begin, nothing
from .job import NOW, Board, Event, Job, Outcome, Place, Pulse

_DUMP_S = 1.5


class Host:
    """Forks a rank, passes on what it says, and answers for it."""

    template: ClassVar[list[str]] = [
        "diptych.cluster.birth",
        "diptych.cluster.worker",
        "diptych.cluster.engine",
        "diptych.cluster.warm",
        "aiobotocore.session",
        "s3fs",
        # What torch and DeepSpeed import only as they start, 1,000 modules in all; a name that a
        # version does not have is passed over.
        "torch._dynamo",
        "deepspeed.comm.mori",
        "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.ops.op_builder.all_ops",
        "setuptools",
    ]
    """Modules that a rank finds imported."""

    def __init__(self) -> None:
        if not ray.get_gpu_ids():  # DeepSpeed takes any GPU that it sees, also one of another's
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # Else every child would run Ray's own script again, for functions that it might hold.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(self.template)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the template inherits
        forkserver.ensure_running()
        signal.signal(signal.SIGTERM, self._leave)
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._child: Any = None
        self._board = Board(self._context)
        self._leaving, self._grace_s = False, inf
        self._stack: Any = None

    def node(self) -> str:
        """Ray's id of the node."""
        return ray.get_runtime_context().get_node_id()

    def warm(self) -> None:
        """Returns when the template has imported all that a rank needs."""
        child = self._context.Process(target=nothing)
        child.start()
        child.join()

    def fork(self) -> Place:
        """Makes a fresh process for a rank; the one before, if any, is gone."""
        self.clear()
        self._events, self._board = [], Board(self._context)
        handle, stack = tempfile.mkstemp(prefix="diptych-stack-")  # the child removes the name
        self._stack = os.fdopen(handle, "rb")
        self._pipe, theirs = self._context.Pipe()
        self._child = self._context.Process(
            target=begin, args=(theirs, self._board, stack), daemon=True
        )
        self._child.start()
        theirs.close()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return Place(
            pid=self._child.pid,
            host=socket.gethostname(),
            address=ray.util.get_node_ip_address(),
            port=port,
            node=self.node(),
        )

    def run(self, rank: int, job: Job, meet: Place) -> Outcome:
        """Lets the forked process be a rank, to its end. It is kept until `clear`."""
        child, pipe = self._child, self._pipe
        self._grace_s = job.shape["grace_s"]
        try:
            pipe.send((rank, job, meet))
            while True:
                said = pipe.recv()
                if isinstance(said, Outcome):
                    return said
                with self._lock:
                    if child is self._child:  # else it is of an attempt that is over
                        self._events.append(said)
        except (EOFError, OSError):
            child.join()
            return Outcome("died", text=f"its process ended with {_ended(child.exitcode)}")

    def poll(self) -> Pulse:
        """How the rank is, and what it said since the last time."""
        with self._lock:
            found, self._events = self._events, []
        return self._board.pulse(found, self._leaving)

    def ask(self, wish: int, left_s: float = inf) -> None:
        """Asks the rank to keep a checkpoint and end: NEXT or NOW, within so many seconds."""
        self._board.ask(wish, left_s)

    def stack(self) -> str:
        """Where the rank's threads are; of a stopped process too, which is woken up for it."""
        if self._child is None:
            return ""
        try:
            process = psutil.Process(self._child.pid)
            state = process.status()
            process.send_signal(signal.SIGUSR1)
            if not self._dumped() and state == psutil.STATUS_STOPPED:
                process.resume()
                self._dumped()
        except psutil.Error as err:
            return f"process {self._child.pid}: {err}"
        self._stack.seek(0)
        return f"process {self._child.pid}, {state}:\n{self._stack.read().decode()}"

    def clear(self) -> bool:
        """Ends the rank's process, if there is one, now; returns whether the host may stay."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None and not wait([child.sentinel], timeout=0):
            os.kill(child.pid, signal.SIGKILL)
            wait([child.sentinel])
        return not self._leaving

    def _dumped(self) -> bool:
        deadline, size = time.monotonic() + _DUMP_S, 0
        while time.monotonic() < deadline:
            time.sleep(0.1)
            before, size = size, os.fstat(self._stack.fileno()).st_size
            if size and size == before:
                return True
        return False

    def _leave(self, *_: Any) -> None:
        """SIGTERM: this node is going. The rank keeps a checkpoint while there is time."""
        self._leaving = True
        self._board.ask(NOW, self._grace_s)


def _ended(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"exit code {code}"


def spawn(cpus: int, gpus: int) -> Any:
    """A host as a Ray actor wherever there is room, now or later; it is never restarted."""
    kind = ray.remote(Host).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=8, max_restarts=0)
    return kind.remote()
