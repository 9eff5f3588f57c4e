"""What a driver, its hosts and their ranks say to each other. Light: a host imports no torch."""

from dataclasses import dataclass
from math import inf
from multiprocessing.context import BaseContext
from time import monotonic
from typing import Any, Literal, NamedTuple

from ..errors import DiptychError

DOING = ("start", "data", "step", "save", "draw")
"""`pretrain.loop.Doing`, and the first step counts as `start`: it may take much longer."""
NO, NEXT, NOW = 0, 1, 2
"""Wishes to stop, each stronger than the one before: none, at the next checkpoint, soon."""


@dataclass(frozen=True)
class Job:
    """One attempt at a run, as every worker is told."""

    recipe: dict[str, Any]
    """Plain values of the run."""
    shape: dict[str, Any]
    """Plain values of the shape, its `workers` those of this attempt."""
    url: str
    """The run's folder."""
    data: str
    """Digest of the training data."""
    attempt: int
    start: int
    """Steps that are done; above 0 there is a complete checkpoint of them."""


class Place(NamedTuple):
    """A rank's process and a free port on its node."""

    pid: int
    host: str
    address: str
    port: int
    node: str
    """Ray's id of the node."""


class Event(NamedTuple):
    """Something a worker tells the driver: `metrics`, `log`, `picture` or `event`."""

    kind: str
    rank: int
    body: dict[str, Any]


class Outcome(NamedTuple):
    """How a rank ended."""

    kind: Literal["done", "failed", "cut", "died"]
    """`cut`: it lost touch with another rank. `died`: its process is gone."""
    steps: int = 0
    """Steps done in all, of `done`."""
    error: DiptychError | None = None
    """Of `failed`, where it is one of ours."""
    text: str = ""
    """What else there is to say of it."""


class Pulse(NamedTuple):
    """How a rank is."""

    events: list[Event]
    """Since the last pulse."""
    doing: str
    """One of `DOING`."""
    step: int
    quiet_s: float
    """For how long it has been doing just that."""
    still_s: float
    """For how long its process has not run at all; it shows itself twice a second."""
    leaving: bool
    """Its host was told to go."""


class Board:
    """A few numbers that a rank's process and its host share: no message, so no waiting."""

    def __init__(self, context: BaseContext) -> None:
        self._values = context.RawArray("d", [0.0, 0.0, monotonic(), monotonic(), NO, inf])

    def doing(self, what: str, step: int) -> None:
        """The rank does something else from now on."""
        self._values[:3] = [DOING.index(what), step, monotonic()]

    def pulse(self, events: list[Event], leaving: bool) -> Pulse:
        """How the rank is."""
        what, step, since, seen = self._values[:4]
        now = monotonic()
        return Pulse(events, DOING[int(what)], int(step), now - since, now - seen, leaving)

    def show(self) -> None:
        """The rank's process runs."""
        self._values[3] = monotonic()

    def ask(self, wish: int, left_s: float = inf) -> None:
        """Leaves a wish to stop, and how long this machine will be there; the shortest counts."""
        self._values[4] = wish
        self._values[5] = min(self._values[5], monotonic() + left_s)

    @property
    def wish(self) -> int:
        """The wish that was left, or NO."""
        return int(self._values[4])

    @property
    def left_s(self) -> float:
        """Seconds until this machine is taken away, as far as is known; infinite if it is not."""
        return self._values[5] - monotonic()
