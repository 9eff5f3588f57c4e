"""What a rank's process does from its fork on. It imports nothing that its template has not."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from .job import Board

_SHOW_S = 0.5
_PR_SET_PDEATHSIG = 1


def begin(pipe: Connection, board: Board, stack: str) -> None:
    """The rank's process, from its fork on: waits for its task and goes about it."""
    if sys.platform == "linux":  # whatever ends the template, and the host ends it, ends this too
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's affair
    with open(stack, "wb") as file:
        os.unlink(stack)  # the host reads it all the same, and nothing is left behind
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        try:
            rank, job, meet = pipe.recv()
        except EOFError:
            return
        threading.Thread(target=_show, args=(board,), daemon=True).start()
        from .worker import work

        pipe.send(work(rank, job, meet, board, pipe))
        threading.Event().wait()  # others may still be reading what this rank sent them


def _show(board: Board) -> None:
    while True:
        board.show()
        time.sleep(_SHOW_S)


def nothing() -> None:
    """What the first child does; by the time it is done the template is warm."""
