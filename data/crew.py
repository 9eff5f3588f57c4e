"""Threads for a generator, which may be given up half-way."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def crew(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool that is waited for at a good end, and otherwise only told to stop.

    The garbage collector may close a generator that was given up in any thread at any moment, even
    while the interpreter registers a new thread; to join others there would lock it up for good.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)
