"""Writing a checkpoint behind the step, and taking one over.

Every rank copies its own fp32 slices to host memory and writes them while training goes on. Each
then leaves a list of its slices; rank 0 waits for all lists, writes the manifest and reads it back,
and only then are older checkpoints deleted. No collective is involved, so a rank that dies here
hangs nobody.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from ..data import storage
from ..errors import CheckpointError, ClusterError, DiptychError
from ..pretrain import checkpoint as form
from ..pretrain import slices
from ..pretrain.checkpoint import Checkpoint
from ..pretrain.slices import Piece, Slice
from . import journal, partition
from .journal import Journal, Page


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a checkpoint, in host memory."""

    step: int
    pieces: list[Piece]
    shapes: dict[str, tuple[int, ...]]
    base: str | None
    optimiser_step: float
    page: Page


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
    timeout_s: float = 600.0
    fault: DiptychError | OSError | None = None
    _host: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """What snapshots are copied into: one at a time, so it is used again and again."""

    def snapshot(
        self, engine: Any, step: int, averages: Sequence[Piece] = (), base: str | None = None
    ) -> Snapshot:
        """Copies this rank's slices; training may go on as soon as it returns.

        The snapshot before must have been written.
        """
        live = [*partition.owned(engine, self.rank, self.world), *averages]
        size = sum(data.numel() for *_, data in live)
        gpu = any(data.is_cuda for *_, data in live)
        if self._host.numel() != size:
            self._host = torch.empty(size, pin_memory=gpu)
        pieces: list[Piece] = []
        for (name, kind, offset, data), copy in zip(
            live, self._host.split([data.numel() for *_, data in live]), strict=True
        ):
            pieces.append((name, kind, offset, copy.copy_(data, non_blocking=True)))
        if gpu:
            torch.cuda.current_stream().synchronize()
        shapes, steps = partition.shapes(engine), partition.steps(engine)
        return Snapshot(step, pieces, shapes, base, steps, self.journal.turn())

    def write(self, snapshot: Snapshot) -> None:
        """Writes the share; rank 0 commits. Errors are kept for `raise_fault`."""
        try:
            self._write(snapshot)
        except (DiptychError, OSError) as err:
            self.fault = err

    def raise_fault(self) -> None:
        """Raises what went wrong behind the step, in the step."""
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault

    def _write(self, snapshot: Snapshot) -> None:
        place = form.folder(self.run, snapshot.step)
        journal.put(self.run, snapshot.step, self.attempt, self.rank, snapshot.page)
        mine = f"attempt-{self.attempt}/rank-{self.rank}"
        found = slices.put_slices(place, f"{mine}.safetensors", snapshot.pieces)
        storage.write(
            storage.join(place, f"{mine}.json"), json.dumps([astuple(s) for s in found]).encode()
        )
        if self.rank:
            return
        everyone = [*found]
        for rank in range(1, self.world):
            everyone += self._listed(
                storage.join(place, f"attempt-{self.attempt}/rank-{rank}.json")
            )
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
        form.retain(self.run, self.keep)

    def _listed(self, url: str) -> list[Slice]:
        deadline = time.monotonic() + self.timeout_s
        while not storage.exists(url):
            if time.monotonic() > deadline:
                raise ClusterError(f"{url} did not come within {self.timeout_s:.0f} s.")
            time.sleep(0.1)
        return [Slice(*row) for row in json.loads(storage.read(url))]


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
