"""The driver's side of the hosts: asks Ray for them, waits, loses some, finds others."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from ..errors import ClusterError, Stopped
from .host import spawn
from .job import Pulse
from .shapes import Shape

_PLACE_S = 120.0
_WARM = 5
"""So many times as long may hosts take that have a place and import torch on a busy machine."""
_SILENT_S = 60.0
_ANSWER_S = 10.0
_TICK_S = 0.2
_STILLBORN = 3
"""Hosts that may die of their own at the start, for each that is wanted."""


@dataclass(eq=False)
class Member:
    """One host, and where it is once it is there."""

    actor: Any
    born: Any
    """Ray's reference to the answer of `Host.node`: it has a place."""
    warm: Any
    """Ray's reference to the answer of `Host.warm`: it can fork."""
    node: str = ""
    """Where it is, once it is warm."""
    asked: Any = None
    """Reference to a pulse under way."""
    asked_at: float = 0.0

    def pulse(self) -> Pulse | None:
        """How its rank is, if there is an answer; a question is always under way.

        Raises:
            RayError: the host is gone, or has not answered for too long.
        """
        if self.asked is None:
            self.asked, self.asked_at = self.actor.poll.remote(), time.monotonic()
        done, _ = ray.wait([self.asked], timeout=0)
        if done:
            found: Pulse = ray.get(self.asked)
            self.asked = None
            return found
        if time.monotonic() - self.asked_at > _SILENT_S:
            raise GetTimeoutError(f"no answer for {_SILENT_S:.0f} s")
        return None


class Crew:
    """As many hosts as the shape has workers; those that are lost are asked for again."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._members: list[Member] = []
        self._born_dead = 0
        self.broken = ""
        """Why no more hosts are asked for: those that come die as they start."""

    def gather(self, sizes: list[int], stopping: Callable[[], bool]) -> list[Member]:
        """Hosts for the largest of the sizes that Ray has room for, those of a node together.

        Args:
            sizes: numbers of hosts that will do, most first.
            stopping: asked all the while.

        Raises:
            ClusterError: there is no room for the fewest, or they die as they start.
            Stopped: `stopping` said so.
        """
        began = time.monotonic()
        self._born_dead, self.broken = 0, ""
        self._muster()
        while True:
            ready = self.refresh()
            fit = [size for size in sizes if size <= len(ready)]
            waited = time.monotonic() - began
            vain = (waited > self.shape.wait_s or self.broken) and not self._coming()
            if fit and (fit[0] == sizes[0] or vain):
                return sorted(ready, key=lambda member: member.node)[: fit[0]]
            if vain and self.broken:
                raise ClusterError(f"workers die as they start: {self.broken}")
            if stopping():
                raise Stopped
            patience = _WARM if self._coming() else 1
            if waited > max(_PLACE_S, self.shape.wait_s) * patience:
                raise ClusterError(
                    f"no room for {sizes[-1]} workers of {self.shape.cpus_per_worker} CPUs and "
                    f"{self.shape.gpus_per_worker} GPUs within {waited:.0f} s; the cluster has "
                    f"{ray.cluster_resources()}. Add nodes, or ask for less."
                )
            time.sleep(_TICK_S / 4)

    def refresh(self) -> list[Member]:
        """The hosts that are there and warm; lost ones are asked for again. Never waits.

        After too many that died as they started, `broken` says why and none is asked for again.
        """
        for member in [member for member in self._members if not member.node]:
            if not ray.wait([member.warm], timeout=0)[0]:
                continue
            try:
                member.node = ray.get([member.born, member.warm])[0]
                self._born_dead = 0
            except RayError as err:
                self.drop(member)
                self._born_dead += 1
                if self._born_dead >= _STILLBORN * self.shape.workers:
                    self.broken = str(err)
        leaving = draining()
        for member in [member for member in self._members if member.node in leaving]:
            self.drop(member)
        while len(self._members) < self.shape.workers and not self.broken:
            actor = spawn(self.shape.cpus_per_worker, self.shape.gpus_per_worker)
            self._members.append(Member(actor, actor.node.remote(), actor.warm.remote()))
        return [member for member in self._members if member.node]

    def drop(self, member: Member) -> None:
        """Gives a host up."""
        if member in self._members:
            self._members.remove(member)
        ray.kill(member.actor)

    def close(self) -> None:
        """Gives all hosts up."""
        for member in list(self._members):
            self.drop(member)

    def _coming(self) -> bool:
        """Whether a host has its place already and is only getting warm."""
        cold = [member.born for member in self._members if not member.node]
        return bool(cold and ray.wait(cold, timeout=0)[0])

    def _muster(self) -> None:
        """Ends what the hosts do, and drops those that are gone or are told to go."""
        waiting = {m.actor.clear.remote(): m for m in self._members if m.node}
        until = time.monotonic() + _ANSWER_S
        for answer, member in waiting.items():
            with contextlib.suppress(RayError):
                if ray.get(answer, timeout=max(0.0, until - time.monotonic())):
                    member.asked = None
                    continue
            self.drop(member)


def draining() -> dict[str, float | None]:
    """Nodes that Ray will take away soon, and in how many seconds: None where none was told.

    A preemption, or a node that is not needed. Ray has no public call for it; Ray Train (2.60)
    asks in the same way.
    """
    nodes: dict[str, int] = ray._private.state.state.get_draining_nodes()  # pyright: ignore
    return {node: at / 1000 - time.time() if at else None for node, at in nodes.items()}
