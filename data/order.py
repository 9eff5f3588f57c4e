"""The endless order in which one source's samples are visited: epoch after epoch, without a seam.

An epoch is a permutation of blocks (runs of neighbouring samples of one shard) and a shuffle
within windows of several blocks, so bytes are read in large ranges. Any place of it is found
without walking there.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import draws
from .index import Manifest

BLOCK_BYTES = 8 << 20
BLOCK_SAMPLES = 256
WINDOW_BYTES = 128 << 20
WINDOW_SAMPLES = 4096


class Block(NamedTuple):
    """A run of neighbouring samples of one shard: what one ranged read brings."""

    shard: int
    first: int
    samples: int


class Order:
    """The visits of one source, numbered from 0; visit `samples * e` begins epoch e.

    Holds 8 bytes a shard, and 4 bytes a block for each of the two epochs in use.

    Args:
        manifest: the source.
        seed: anything printable; the order is a pure function of it and the manifest's counts.
        shuffle: False visits the samples as they lie in their shards.
    """

    def __init__(self, manifest: Manifest, seed: object, *, shuffle: bool = True) -> None:
        self.seed, self.shuffle = seed, shuffle
        self.samples = manifest.samples
        mean = max(1, manifest.bytes // max(1, self.samples))
        self.block_samples = max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // mean))
        window = max(self.block_samples, min(WINDOW_SAMPLES, WINDOW_BYTES // mean))
        self.window_blocks = window // self.block_samples
        self._shard_samples = np.array([shard.samples for shard in manifest.shards])
        ends = np.cumsum(-(-self._shard_samples // self.block_samples))
        self._first_block = np.concatenate([[0], ends])
        self.blocks = int(ends[-1]) if len(ends) else 0
        self._epoch = functools.lru_cache(2)(self._order_of)
        self.window = functools.lru_cache(8)(self._window_of)

    def block(self, number: int) -> Block:
        """What a block covers."""
        shard, first, samples = self._cover(np.array([number]))
        return Block(int(shard[0]), int(first[0]), int(samples[0]))

    def locate(self, visits_V: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(epoch, window of the epoch, place in the window) of visits."""
        epochs, places = np.divmod(visits_V, self.samples)
        windows, offsets = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts = self._epoch(int(epoch))[1]
            windows[here] = np.searchsorted(starts, places[here], side="right") - 1
            offsets[here] = places[here] - starts[windows[here]]
        return epochs, windows, offsets

    def visits(self, visits_V: np.ndarray) -> np.ndarray:
        """(V, 5) int64: epoch, window, block, shard, place in the shard of each visit."""
        epochs, windows, offsets = self.locate(visits_V)
        found = np.empty((len(visits_V), 2), dtype=np.int64)
        for epoch, window in {*zip(epochs.tolist(), windows.tolist(), strict=True)}:
            here = (epochs == epoch) & (windows == window)
            found[here] = self.window(epoch, window)[offsets[here]]
        shard, first, _ = self._cover(found[:, 0])
        return np.stack([epochs, windows, found[:, 0], shard, first + found[:, 1]], axis=1)

    def window_starts(self, epoch: int) -> np.ndarray:
        """First place in the epoch of each window."""
        return self._epoch(epoch)[1]

    def epoch_blocks(self, epoch: int) -> np.ndarray:
        """The blocks of an epoch in the order of their windows."""
        return self._epoch(epoch)[0]

    def shard_blocks(self, shard: int) -> range:
        """The blocks of a shard."""
        return range(int(self._first_block[shard]), int(self._first_block[shard + 1]))

    def _cover(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, first sample, samples) of blocks."""
        shard = np.searchsorted(self._first_block, blocks, side="right") - 1
        first = (blocks - self._first_block[shard]) * self.block_samples
        return shard, first, np.minimum(self.block_samples, self._shard_samples[shard] - first)

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(blocks in the order of the epoch, first place of each window)."""
        if self.shuffle:
            key = draws.row_key(self.seed, epoch, "blocks")
            order = draws.permutation(self.blocks, key).numpy().astype(np.uint32)
        else:
            order = np.arange(self.blocks, dtype=np.uint32)
        ends = np.cumsum(self._cover(order.astype(np.int64))[2])
        return order, np.concatenate([[0], ends])[: -1 : self.window_blocks]

    def _window_of(self, epoch: int, window: int) -> np.ndarray:
        """(samples, 2): block and place in the block of each visit in a window, in order."""
        first = window * self.window_blocks
        blocks = self._epoch(epoch)[0][first : first + self.window_blocks].astype(np.int64)
        sizes = self._cover(blocks)[2]
        places = np.concatenate([np.arange(size) for size in sizes])
        pairs = np.stack([np.repeat(blocks, sizes), places], axis=1)
        if not self.shuffle:
            return pairs
        order = draws.permutation(len(pairs), draws.row_key(self.seed, epoch, "window", window))
        return pairs[order.numpy()]


Labels = Callable[[int], np.ndarray]
"""What bucket each sample of a block falls in, by the block's number; -1 for none."""
