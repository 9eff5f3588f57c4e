"""The pipeline of one rank: plan far ahead, fetch ahead, work ahead, hand over in order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .blocks import Blocks, Raw
from .crew import crew
from .plan import Plan, Ref

T = TypeVar("T")
Begin = Callable[[Blocks, int, Sequence[Ref]], Callable[[], T]]
"""(blocks, step, its rows) -> what waits for the step's result; called well before it is needed."""

_HURRY = 2
"""Steps after a start whose rows are fetched alone, so that training need not wait for windows."""
_PLANNED = 8
"""Steps planned for each one that is handed over, as long as there is memory to fetch for them."""


@dataclass(frozen=True, kw_only=True)
class Walk(Generic[T]):
    """Iterates (step, result) over the steps of one rank, exactly as the plan says.

    Raises whatever reading or `begin` raised, in the caller's thread, at the step that needs it.
    """

    plan: Plan
    begin: Begin[T]
    stop: int
    """The step to end before."""
    start: int = 0
    rank: int = 0
    world: int = 1
    ahead: int = 4
    """Steps begun before they are asked for."""
    connections: int = 8
    """Ranged reads at once."""
    memory: int = 256 << 20
    """Bytes of shards to hold, about; what the next step needs comes always."""
    beside: Sequence[Plan] = ()
    """The same plan on other shards, fetched in step with it: `Blocks.beside`."""
    apart: bool = False
    """Whether they alone are fetched: `Blocks.apart`."""

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """Yields (step, result)."""
        # One: `ahead` others are begun already, and every result waits in memory.
        ready: queue.Queue[tuple[int, T] | BaseException | None] = queue.Queue(1)
        over = threading.Event()

        def hand(item: tuple[int, T] | BaseException | None) -> None:
            while not over.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for item in self._results(over):
                    hand(item)
                hand(None)
            except BaseException as err:  # handed over, and raised by the caller's thread
                hand(err)

        thread = threading.Thread(target=work, name="diptych-stream", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            over.set()  # and no join: see `crew`

    def _results(self, over: threading.Event) -> Iterator[tuple[int, T]]:
        with crew(self.connections, "diptych-fetch") as pool:
            more = [Blocks(plan, pool, self.memory, over) for plan in self.beside]
            blocks = Blocks(self.plan, pool, self.memory, over, more, self.apart)
            planned: deque[tuple[int, list[Ref]]] = deque()
            begun: deque[tuple[int, list[Ref], Callable[[], T]]] = deque()
            step = self.start
            while not over.is_set():
                for _ in range(_PLANNED):
                    few = len(planned) + len(begun) <= self.ahead
                    if step < self.stop and (few or not blocks.full):
                        refs = self.plan.rows(step, self.rank, self.world)
                        blocks.want(refs, hurry=step - self.start < _HURRY)
                        planned.append((step, refs))
                        step += 1
                while planned and len(begun) < self.ahead:
                    number, refs = planned.popleft()
                    begun.append((number, refs, self.begin(blocks, number, refs)))
                if not begun:
                    return
                number, refs, finish = begun.popleft()
                yield number, finish()
                blocks.forget(refs)


def raw(
    plan: Plan, *, start: int = 0, stop: int, rank: int = 0, world: int = 1, memory: int = 256 << 20
) -> Iterator[tuple[int, list[Raw]]]:
    """Yields (step, the rank's samples as their shards hold them), for code that decodes itself."""

    def begin(blocks: Blocks, step: int, refs: Sequence[Ref]) -> Callable[[], list[Raw]]:
        return lambda: blocks.raws(refs)

    yield from Walk(
        plan=plan, begin=begin, start=start, stop=stop, rank=rank, world=world, memory=memory
    )
