"""Writing a checkpoint behind the step, and taking one over.

Every rank copies its own fp32 slices to host memory during the next forward and backward pass,
when nothing changes them, and writes them while training goes on. Each then leaves a list of its
slices; rank 0 waits for all lists, writes the manifest and reads it back, and only then are older
checkpoints deleted. No collective is involved, so a rank that dies here hangs nobody.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch

from ..data import storage
from ..errors import CheckpointError, ClusterError, StorageError
from ..pretrain import checkpoint as form
from ..pretrain import slices
from ..pretrain.checkpoint import Checkpoint
from ..pretrain.slices import Piece, Slice
from . import journal, partition
from .journal import Journal, Page


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's share of a checkpoint."""

    step: int
    live: list[Piece]
    """What training goes on with; it may change once `copied` is set."""
    pieces: list[Piece]
    """The same in host memory, once `copied` is set."""
    shapes: dict[str, tuple[int, ...]]
    base: str | None
    optimiser_step: float
    page: Page
    ready: Any
    """On a GPU, the event after which `live` is that of the step."""
    copied: threading.Event = field(default_factory=threading.Event)


@dataclass
class Writer:
    """Writes one rank's share of every checkpoint of a run."""

    run: str
    recipe: str
    rank: int
    world: int
    attempt: int
    keep: int
    """Complete checkpoints to keep."""
    journal: Journal
    stream: Callable[[int], dict[str, Any]]
    """Where the stream stands after a step: `Plan.state`."""
    say: Callable[[str], None] = print
    """Told, in the training thread, of older checkpoints that could not be deleted."""
    timeout_s: float = 600.0
    fault: Exception | None = None
    rate: float = 0.0
    """Bytes a second at which this rank's share of the last checkpoint was stored; 0 before one."""
    _stays: str = ""
    """Why older checkpoints are still there."""
    _host: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What snapshots are copied into: one at a time, so it is used again and again."""

    def snapshot(
        self, engine: Any, step: int, averages: Sequence[Piece] = (), base: str | None = None
    ) -> Snapshot:
        """Names what is to be kept; `write` copies it, which `copied` of the snapshot tells.

        Forward and backward passes may go on meanwhile, optimiser steps may not. The snapshot
        before must have been written.
        """
        live = [*partition.owned(engine, self.rank, self.world), *averages]
        sizes = [data.numel() for *_, data in live]
        gpu = any(data.is_cuda for *_, data in live)
        if self._host.numel() != sum(sizes):
            self._host = slices.aligned(sum(sizes), pinned=gpu)
        pieces = [
            (name, kind, offset, copy)
            for (name, kind, offset, _), copy in zip(live, self._host.split(sizes), strict=True)
        ]
        return Snapshot(
            step=step,
            live=live,
            pieces=pieces,
            shapes=partition.shapes(engine),
            base=base,
            optimiser_step=partition.steps(engine),
            page=self.journal.turn(),
            ready=torch.cuda.current_stream().record_event() if gpu else None,
        )

    def write(self, snapshot: Snapshot) -> None:
        """Copies and writes the share; rank 0 commits. Errors are kept for `raise_fault`.

        `copied` of the snapshot is set in any case.
        """
        try:
            try:
                _copy(snapshot)
            finally:
                snapshot.copied.set()
            self._write(snapshot)
        except Exception as err:
            self.fault = err

    def takes_s(self, live: Sequence[Piece]) -> float:
        """Seconds that storing so much takes at the rate of the last time; 0 if there was none."""
        return _bytes(live) / self.rate if self.rate else 0.0

    def raise_fault(self) -> None:
        """Raises what went wrong behind the step, in the step."""
        if self._stays:
            self.say(self._stays)
            self._stays = ""
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault

    def _write(self, snapshot: Snapshot) -> None:
        place = form.folder(self.run, snapshot.step)
        journal.put(self.run, snapshot.step, self.attempt, self.rank, snapshot.page)
        mine = f"attempt-{self.attempt}/rank-{self.rank}"
        began = time.monotonic()
        found = slices.put_slices(place, f"{mine}.safetensors", snapshot.pieces)
        storage.write(
            storage.join(place, f"{mine}.json"), json.dumps([astuple(s) for s in found]).encode()
        )
        self.rate = _bytes(snapshot.live) / max(time.monotonic() - began, 1e-9)
        if self.rank:
            # The next checkpoint may not begin before this one is complete: a machine that dies
            # in it would take two intervals with it.
            self._await(form.manifest(self.run, snapshot.step))
            return
        everyone = [*found]
        for rank in range(1, self.world):
            everyone += self._listed(
                storage.join(place, f"attempt-{self.attempt}/rank-{rank}.json")
            )
        self._count_holes(snapshot.step)
        form.commit(
            self.run,
            snapshot.step,
            attempt=self.attempt,
            recipe=self.recipe,
            base=snapshot.base,
            shapes=snapshot.shapes,
            slices=everyone,
            extra={
                "world": self.world,
                "attempt": self.attempt,
                "stream": self.stream(snapshot.step),
                "optimiser_step": snapshot.optimiser_step,
            },
        )
        try:
            form.retain(self.run, self.keep)
        except StorageError as err:  # this checkpoint is complete, and no run ends over old ones
            self._stays = f"older checkpoints stay: {err}"

    def _count_holes(self, step: int) -> None:
        """Refuses a checkpoint up to which all ranks together passed the budget of `data.faults`.

        Each rank has stored its page before its list. What rank 0 alone met it has counted.
        """
        if self.journal.holes and self.world > 1:
            self.journal.holes.count(journal.met(self.run, step, self.attempt))

    def _listed(self, url: str) -> list[Slice]:
        self._await(url)
        return [Slice(*row) for row in json.loads(storage.read(url))]

    def _await(self, url: str) -> None:
        deadline, pause = time.monotonic() + self.timeout_s, 0.01
        while not storage.exists(url):
            if time.monotonic() > deadline:
                raise ClusterError(f"{url} did not come within {self.timeout_s:.0f} s.")
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)


def _bytes(pieces: Sequence[Piece]) -> int:
    return sum(data.nbytes for *_, data in pieces)


def _copy(snapshot: Snapshot) -> None:
    """Fills the host's memory with what is live."""
    pairs = [(mine[3], kept[3]) for mine, kept in zip(snapshot.live, snapshot.pieces, strict=True)]
    if snapshot.ready is None:
        for live, copy in pairs:  # by NumPy: one memcpy, which does not read what it overwrites
            np.copyto(copy.numpy(), live.detach().numpy())
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_event(snapshot.ready)
        for live, copy in pairs:
            copy.copy_(live, non_blocking=True)
        torch.cuda.current_stream().synchronize()


def restore(
    engine: Any, checkpoint: Checkpoint, averages: Sequence[Piece] = (), base: str | None = None
) -> None:
    """Reads this rank's elements of a checkpoint, whatever world size and stage wrote it.

    Raises:
        CheckpointError: parameters are missing, have other shapes, or stand on another base.
    """
    here = partition.shapes(engine)
    for name in sorted(here.keys() | checkpoint.shapes.keys()):
        ours, theirs = here.get(name, "missing"), checkpoint.shapes.get(name, "missing")
        if ours != theirs:
            raise CheckpointError(f"{checkpoint.url}: {name} is {ours} here and {theirs} there.")
    form.require_base(checkpoint, base)
    checkpoint.fill([*partition.held(engine), *averages])
    partition.set_steps(engine, float(checkpoint.extra["optimiser_step"]))
    partition.renew(engine)
