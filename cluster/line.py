"""The line of runs that wait for one cluster: in order of priority, then of submission.

Every run that was submitted has a ticket, a small file in `~line/` beside the runs, which its
driver renews and takes away. Of a driver that died, the ticket grows old and counts no more. A line
is of one cluster and one folder of runs.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from ..data import storage
from ..errors import DiptychError, Stopped, StorageError
from ..pretrain.rundir import RunDir
from .shapes import Shape
from .status import here

if TYPE_CHECKING:  # torch takes seconds
    from ..pretrain.run import Run

_BEAT_S = 5.0
_OLD_S = 30.0
_LOOK_S = 1.0
_TELL_S = 10.0
"""A run that says nothing for longer may be taken for lost; see status.py."""
LINE = "~line"
"""No run can have this name."""


class Ticket(NamedTuple):
    """One run's place in the line."""

    url: str
    cluster: str
    priority: int
    asked: float
    """When it was submitted."""
    cpus: float
    gpus: float
    """What it needs at least to begin."""
    begun: bool
    beat: float

    @property
    def order(self) -> tuple[int, float, str]:
        """Smallest first."""
        return -self.priority, self.asked, self.url

    @property
    def lives(self) -> bool:
        """Whether its driver has been heard of lately."""
        return time.time() - self.beat < _OLD_S


class Room(NamedTuple):
    """CPUs and GPUs of a cluster."""

    cpus: float
    gpus: float


def tickets(runs: str) -> list[Ticket]:
    """The tickets of all lines beside the runs of a folder, in order; old ones left out."""
    folder = storage.join(runs, LINE)
    found: list[Ticket] = []
    for name in storage.children(folder):
        url = storage.join(folder, name)
        if storage.exists(url):  # it may have been taken away since
            try:
                found.append(Ticket(**json.loads(storage.read(url))))
            except (ValueError, TypeError, StorageError):
                continue  # taken away, or half written: it is renewed within seconds, or gone
    return sorted((ticket for ticket in found if ticket.lives), key=lambda ticket: ticket.order)


def ahead(mine: Ticket, line: list[Ticket]) -> int:
    """How many of the same cluster wait and come first."""
    same = [one for one in line if one.cluster == mine.cluster and one.url != mine.url]
    return len([one for one in same if not one.begun and one.order < mine.order])


def may_begin(mine: Ticket, line: list[Ticket], total: Room, free: Room) -> bool:
    """Whether it is this run's turn, and there is room.

    A run that has begun keeps what it needs even while its workers are still being placed.
    """
    if ahead(mine, line):
        return False
    begun = [one for one in line if one.begun and one.cluster == mine.cluster]
    cpus = min(free.cpus, total.cpus - sum(one.cpus for one in begun))
    gpus = min(free.gpus, total.gpus - sum(one.gpus for one in begun))
    return mine.cpus <= cpus and mine.gpus <= gpus


@dataclass
class Waiting:
    """This driver's ticket: held while the run waits and trains, taken away at the end."""

    place: RunDir
    run: "Run"
    shape: Shape
    cluster: str
    priority: int = 0
    asked: float = field(default_factory=time.time)
    _begun: bool = False
    _wanted: bool = False
    """The autoscaler has been asked for nodes, and keeps them until that is taken back."""
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Waiting":
        self._renew()
        self._thread = threading.Thread(target=self._keep, name="diptych-line", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._take_back()
        storage.delete(self._url)

    def wait(self, stopping: Callable[[], bool], told: Callable[[str], None]) -> None:
        """Returns when the run may begin.

        Args:
            stopping: asked all the time.
            told: hears a sentence about its place, when it changes and again and again.

        Raises:
            Stopped: `stopping` said so.
        """
        said, said_at = "", 0.0
        while True:
            if stopping():
                raise Stopped
            line, mine = tickets(_above(self.place.url)), self._ticket()
            if may_begin(mine, line, *_rooms()):
                self._begun = True
                self._renew()
                return
            words = f"place {ahead(mine, line) + 1} in line for {mine.cpus:g} CPUs"
            words += f" and {mine.gpus:g} GPUs" if mine.gpus else ""
            if words != said or time.monotonic() - said_at > _TELL_S:
                self._want(first=ahead(mine, line) == 0)
                told(words)
                said, said_at = words, time.monotonic()
            time.sleep(_LOOK_S)

    def _want(self, *, first: bool) -> None:
        """An autoscaler brings nodes for who is first in line.

        There is one request a cluster, which another run may have taken back with its own.
        """
        if first:
            self._wanted = True
            request_resources(bundles=_bundles(self._least))

    def _take_back(self) -> None:
        """Nodes that this run has asked for are not kept for it any longer."""
        if self._wanted:
            try:
                request_resources(bundles=[])
            except (RayError, RuntimeError, ConnectionError) as err:
                print(f"the request for nodes could not be taken back: {err}", flush=True)

    @property
    def _url(self) -> str:
        return storage.join(_above(self.place.url), LINE, f"{self.place.name}.json")

    @property
    def _least(self) -> Shape:
        """The fewest workers that can share its batch: often more than `min_workers`."""
        return self.shape.sizes(self.run)[-1]

    def _ticket(self) -> Ticket:
        shape = self._least
        return Ticket(
            url=self.place.url,
            cluster=self.cluster,
            priority=self.priority,
            asked=self.asked,
            cpus=shape.workers * shape.cpus_per_worker,
            gpus=shape.workers * shape.gpus_per_worker,
            begun=self._begun,
            beat=time.time(),
        )

    def _renew(self) -> None:
        storage.write(self._url, json.dumps(self._ticket()._asdict()).encode())

    def _keep(self) -> None:
        while not self._over.wait(_BEAT_S):
            try:
                self._renew()
            except DiptychError as err:
                print(f"the ticket could not be renewed: {err}", flush=True)


def status(place: RunDir, state: str, note: str = "", *, steps: int = 0, host: str = "") -> None:
    """Says in the run's folder what it is doing before, or instead of, training."""
    before: dict[str, Any] = place.json("status.json")
    place.put(
        "status.json",
        {
            "state": state,
            "note": note,
            "step": before.get("step", 0),
            "steps": steps or before.get("steps", 0),
            **({"host": host, "pid": 0} if host else here()),
            "workers": [],
            "began": before.get("began", time.time()),
            "beat": time.time(),
        },
    )


def _above(url: str) -> str:
    return url.rstrip("/").rpartition("/")[0]


def _bundles(shape: Shape) -> list[dict[str, float]]:
    one: dict[str, float] = {"CPU": shape.cpus_per_worker}
    if shape.gpus_per_worker:
        one["GPU"] = shape.gpus_per_worker
    return [one] * shape.workers


def _rooms() -> tuple[Room, Room]:
    """(all there is, what is free) of the cluster that this process has joined."""
    found = [ray.cluster_resources(), ray.available_resources()]
    total, free = (Room(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in found)
    return total, free
