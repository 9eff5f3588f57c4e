"""Large files on a disk, written past the page cache where the disk can do that."""

import errno
import os
from typing import Any

import numpy as np

PAGE = 4096
"""What address, place and length must be a multiple of for a disk to fetch bytes by itself."""
_SPAN = 32 << 20


def append(file: Any, body: memoryview) -> None:
    """Adds bytes at the end of a file that is open for writing; whole pages go straight to disk.

    Copying a checkpoint into the page cache costs ten times the CPU time of having the disk fetch
    it, and throws out what training reads. Bytes that do not begin at a page, or whose disk cannot
    (tmpfs, some network disks), go through the cache as usual.
    """
    file.flush()
    start = file.tell()
    fits = not (start % PAGE or np.frombuffer(body, np.uint8).ctypes.data % PAGE)
    done = _direct(file.name, start, body) if fits else 0
    file.seek(start + done)
    file.write(body[done:])


def _direct(path: str, start: int, body: memoryview) -> int:
    """Writes what it can of the whole pages of `body`; returns how many bytes those were."""
    whole, done = len(body) // PAGE * PAGE, 0
    flag = getattr(os, "O_DIRECT", 0)
    if not (flag and whole):
        return 0
    try:
        handle = os.open(path, os.O_WRONLY | flag)
    except OSError as err:
        return _refused(err)
    try:
        while done < whole:
            span = body[done : min(done + _SPAN, whole)]
            done += os.pwrite(handle, span, start + done)
    except OSError as err:
        _refused(err)
    finally:
        os.close(handle)
    return done


def _refused(err: OSError) -> int:
    """0 if the disk only refuses this way of writing; anything else is raised."""
    if err.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return 0
    raise err
