"""What a driver and its workers say to each other."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from .shapes import Shape


@dataclass(frozen=True)
class Job:
    """One attempt at a run, as every worker is told."""

    recipe: dict[str, Any]
    """Plain values of the run."""
    url: str
    """The run's folder."""
    data: str
    """Digest of the training data."""
    shape: Shape
    attempt: int
    start: int
    """Steps that are done; above 0 there is a complete checkpoint of them."""


class Place(NamedTuple):
    """A worker's process and a free port on its node."""

    pid: int
    host: str
    address: str
    port: int


class Event(NamedTuple):
    """Something a worker tells the driver: `metrics` or `log`."""

    kind: str
    rank: int
    body: dict[str, Any]
