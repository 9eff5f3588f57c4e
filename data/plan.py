"""Which samples make step n: a pure function of (manifest, seed, batch size, step).

The epoch's order is a permutation of blocks (runs of neighbouring samples of one shard) and a
shuffle within windows of several blocks, so bytes are read in large ranges. The epochs follow each
other without a seam. World size, workers and restarts only slice the sequence.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from . import draws
from .index import Manifest

BLOCK_BYTES = 8 << 20
BLOCK_SAMPLES = 256
WINDOW_BYTES = 256 << 20
WINDOW_SAMPLES = 4096


class Ref(NamedTuple):
    """One visit of one sample."""

    epoch: int
    window: int
    """Which window of the epoch the visit falls in."""
    block: int
    """Which block of the dataset holds the sample."""
    shard: int
    position: int
    """Place of the sample in its shard."""


class Block(NamedTuple):
    """A run of neighbouring samples of one shard: what one ranged read brings."""

    shard: int
    first: int
    samples: int


@dataclass(frozen=True)
class Plan:
    """The sequence of global batches of one dataset."""

    manifest: Manifest
    seed: int
    batch: int
    """Rows of a global batch."""
    shuffle: bool = True
    blocks: tuple[Block, ...] = field(init=False)
    window_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        if self.manifest.samples < self.batch:
            raise DataError(
                f"{self.manifest.url}: {self.manifest.samples} samples cannot fill a batch of "
                f"{self.batch}. Lower the batch, or add samples."
            )
        mean = max(1, self.manifest.bytes // self.manifest.samples)
        size = max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // mean))
        window = max(size, min(WINDOW_SAMPLES, WINDOW_BYTES // mean))
        object.__setattr__(self, "blocks", tuple(_cut(self.manifest, size)))
        object.__setattr__(self, "window_blocks", window // size)

    @property
    def steps_per_epoch(self) -> float:
        """Steps that see every sample once."""
        return self.manifest.samples / self.batch

    def step(self, step: int) -> list[Ref]:
        """The global batch of a step, ordered by place so that a slice of it reads neighbours."""
        first = step * self.batch
        refs = [self._visit(position) for position in range(first, first + self.batch)]
        return sorted(refs, key=lambda ref: (ref.epoch, ref.shard, ref.position))

    def rows(self, step: int, rank: int, world: int) -> list[Ref]:
        """The rows of a step that a rank trains on; all ranks have equally many."""
        size, rest = divmod(self.batch, world)
        if rest:
            raise DataError(
                f"a global batch of {self.batch} rows cannot be cut into {world} equal parts. "
                "Choose a batch that the number of workers divides."
            )
        return self.step(step)[rank * size : (rank + 1) * size]

    def _visit(self, position: int) -> Ref:
        epoch, place = divmod(position, self.manifest.samples)
        window, start = self._window_at(epoch, place)
        block, offset = self._window(epoch, window)[place - start]
        found = self.blocks[block]
        return Ref(epoch, window, int(block), found.shard, found.first + int(offset))

    def _window_at(self, epoch: int, place: int) -> tuple[int, int]:
        """(window, its first place) of a place in the epoch."""
        starts = _starts(self, epoch)
        window = int(np.searchsorted(starts, place, side="right")) - 1
        return window, int(starts[window])

    def _window(self, epoch: int, window: int) -> np.ndarray:
        return _window(self, epoch, window)

    def __hash__(self) -> int:
        return hash((self.manifest.digest, self.seed, self.batch, self.shuffle))


def _cut(manifest: Manifest, size: int) -> Iterator[Block]:
    for number, shard in enumerate(manifest.shards):
        for first in range(0, shard.samples, size):
            yield Block(number, first, min(size, shard.samples - first))


@functools.lru_cache(maxsize=4)
def _order(plan: Plan, epoch: int) -> np.ndarray:
    """Blocks in the order that the epoch visits them."""
    if not plan.shuffle:
        return np.arange(len(plan.blocks))
    key = draws.row_key(plan.seed, epoch, "blocks")
    return draws.permutation(len(plan.blocks), key).numpy()


@functools.lru_cache(maxsize=4)
def _starts(plan: Plan, epoch: int) -> np.ndarray:
    """First place in the epoch of each window."""
    counts = np.array([plan.blocks[block].samples for block in _order(plan, epoch)])
    ends = np.concatenate([[0], np.cumsum(counts)])
    return ends[: -1 : plan.window_blocks]


@functools.lru_cache(maxsize=8)
def _window(plan: Plan, epoch: int, window: int) -> np.ndarray:
    """(samples, 2): block and place in the block of each visit in a window, in order."""
    first = window * plan.window_blocks
    blocks = _order(plan, epoch)[first : first + plan.window_blocks]
    sizes = [plan.blocks[block].samples for block in blocks]
    places = np.concatenate([np.arange(size) for size in sizes])
    pairs = np.stack([np.repeat(blocks, sizes), places], axis=1)
    if not plan.shuffle:
        return pairs
    order = draws.permutation(len(pairs), draws.row_key(plan.seed, epoch, "window", window))
    return pairs[order.numpy()]
