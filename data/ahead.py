"""Work done ahead of its turn by threads, its results in order and few at a time in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from .crew import crew

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Thing], Result], things: Iterable[Thing], threads: int
) -> Iterator[tuple[Thing, Result]]:
    """Yields (thing, work(thing)) in order, at most two a thread under way.

    Raises whatever `work` raised, at the thing that raised it.
    """
    waiting: deque[tuple[Thing, Future[Result]]] = deque()
    with crew(threads, "diptych-ahead") as pool:
        for thing in things:
            waiting.append((thing, pool.submit(work, thing)))
            if len(waiting) >= 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
