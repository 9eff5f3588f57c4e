"""Memory for bytes that come and go by the megabyte, used again instead of being given back.

Fresh memory costs more than what is put into it: the kernel hands over each page at its first
touch, emptied. On a machine where reading a sample of 44 KB takes 16 us, doing so into fresh
memory takes 95. What is lent here returns by itself, when nobody holds a view of it any more.
"""

import threading
import weakref

import numpy as np

_LEAST = 256 << 10
"""Less is left to Python's own allocator, which uses it again anyway."""
_STEP = 1 << 20
_SLACK = 1.5
"""A piece is lent for at least 1 / 1.5 of its size, or another one is made."""


class Room:
    """Pieces of memory to lend; safe for many threads, and empty in a forked child.

    Args:
        limit: bytes to keep for later; what is lent does not count.
    """

    def __init__(self, limit: int = 128 << 20) -> None:
        self.limit = limit
        self.kept = 0
        """Bytes that wait to be lent."""
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # the garbage collector may return a piece in any thread

    def lend(self, size: int) -> np.ndarray:
        """`size` bytes (uint8) that hold anything; theirs again once no view of them is left."""
        if size < _LEAST:
            return np.empty(size, np.uint8)
        piece = self._take(size)
        lent = piece[:size].view()
        weakref.finalize(lent, self._give, piece).atexit = False
        return lent

    def _take(self, size: int) -> np.ndarray:
        with self._lock:
            for place in range(len(self._free) - 1, -1, -1):  # the warmest first
                if size <= self._free[place].size <= size * _SLACK + _STEP:
                    piece = self._free.pop(place)
                    self.kept -= piece.size
                    return piece
        return np.empty(-(-size // _STEP) * _STEP, np.uint8)

    def _give(self, piece: np.ndarray) -> None:
        with self._lock:
            self._free.append(piece)
            self.kept += piece.size
            while self.kept > self.limit:
                self.kept -= self._free.pop(0).size


ROOM = Room()
"""This process's."""
