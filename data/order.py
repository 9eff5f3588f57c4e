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
GROUP_BLOCKS = 1 << 16


class Block(NamedTuple):
    """A run of neighbouring samples of one shard: what one ranged read brings."""

    shard: int
    first: int
    samples: int


class Order:
    """The visits of one source, numbered from 0; visit `samples * e` begins epoch e.

    Large sources are permuted in two steps, so that no step costs what the whole source would:
    every G-th block makes a group, the groups are permuted, then the blocks of a group. Holds 16
    bytes a shard, and 4 bytes a block for the few groups in use.

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
        self._shard_samples = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        ends = np.cumsum(-(-self._shard_samples // self.block_samples))
        self._first_block = np.concatenate([[0], ends])
        self.blocks = int(self._first_block[-1])
        self.groups = max(1, -(-self.blocks // GROUP_BLOCKS)) if shuffle else 1
        most = -(-self.blocks // self.groups)
        self.group_windows = -(-most // self.window_blocks)
        self.group_order = functools.lru_cache(4)(self._group_order_of)
        self.group_blocks = functools.lru_cache(4)(self._group_blocks_of)
        self.window_starts = functools.lru_cache(4)(self._window_starts_of)
        self.window = functools.lru_cache(8)(self._window_of)
        self._group_samples = self._count_groups()

    def block(self, number: int) -> Block:
        """What a block covers."""
        shard, first, samples = self._cover(np.array([number]))
        return Block(int(shard[0]), int(first[0]), int(samples[0]))

    def locate(self, visits_V: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(epoch, window of the epoch, place in the window) of visits."""
        epochs, places = np.divmod(visits_V, self.samples)
        groups, windows = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts = self._group_starts(int(epoch))
            groups[here] = np.searchsorted(starts, places[here], side="right") - 1
            places[here] -= starts[groups[here]]
        for epoch, group in {*zip(epochs.tolist(), groups.tolist(), strict=True)}:
            here = (epochs == epoch) & (groups == group)
            starts = self.window_starts(epoch, group)
            windows[here] = np.searchsorted(starts, places[here], side="right") - 1
            places[here] -= starts[windows[here]]
        return epochs, groups * self.group_windows + windows, places

    def visits(self, visits_V: np.ndarray) -> np.ndarray:
        """(V, 5) int64: epoch, window, block, shard, place in the shard of each visit."""
        epochs, windows, offsets = self.locate(visits_V)
        found = np.empty((len(visits_V), 2), dtype=np.int64)
        for epoch, window in {*zip(epochs.tolist(), windows.tolist(), strict=True)}:
            here = (epochs == epoch) & (windows == window)
            found[here] = self.window(epoch, window)[offsets[here]]
        shard, first, _ = self._cover(found[:, 0])
        return np.stack([epochs, windows, found[:, 0], shard, first + found[:, 1]], axis=1)

    def shard_blocks(self, shard: int) -> range:
        """The blocks of a shard."""
        return range(int(self._first_block[shard]), int(self._first_block[shard + 1]))

    def _cover(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, first sample, samples) of blocks."""
        shard = np.searchsorted(self._first_block, blocks, side="right") - 1
        first = (blocks - self._first_block[shard]) * self.block_samples
        return shard, first, np.minimum(self.block_samples, self._shard_samples[shard] - first)

    def _count_groups(self) -> np.ndarray:
        """Samples of each group: only the last block of a shard may be short."""
        blocks = np.array([len(range(g, self.blocks, self.groups)) for g in range(self.groups)])
        last = self._first_block[1:][self._shard_samples > 0] - 1
        short = -self._shard_samples[self._shard_samples > 0] % self.block_samples
        lacking = np.bincount(last % self.groups, weights=short, minlength=self.groups)
        return blocks * self.block_samples - lacking.astype(np.int64)

    def _group_order_of(self, epoch: int) -> np.ndarray:
        """The groups in the order of the epoch."""
        if self.groups == 1:
            return np.zeros(1, dtype=np.int64)
        return draws.permutation(self.groups, draws.row_key(self.seed, epoch, "groups")).numpy()

    def _group_starts(self, epoch: int) -> np.ndarray:
        """First place in the epoch of each of its groups."""
        ends = np.cumsum(self._group_samples[self.group_order(epoch)])
        return np.concatenate([[0], ends[:-1]])

    def _group_blocks_of(self, epoch: int, group: int) -> np.ndarray:
        """The blocks of the epoch's group number so-and-so, in the order of their windows."""
        mine = int(self.group_order(epoch)[group])
        blocks = np.arange(mine, self.blocks, self.groups, dtype=np.uint32)
        if not self.shuffle:
            return blocks
        which = ("blocks",) if self.groups == 1 else ("blocks", mine)
        key = draws.row_key(self.seed, epoch, *which)
        return blocks[draws.permutation(len(blocks), key).numpy()]

    def _window_starts_of(self, epoch: int, group: int) -> np.ndarray:
        """First place in the group of each of its windows."""
        samples = self._cover(self.group_blocks(epoch, group).astype(np.int64))[2]
        return np.concatenate([[0], np.cumsum(samples)])[: -1 : self.window_blocks]

    def _window_of(self, epoch: int, window: int) -> np.ndarray:
        """(samples, 2): block and place in the block of each visit in a window, in order."""
        group, number = divmod(window, self.group_windows)
        first = number * self.window_blocks
        blocks = self.group_blocks(epoch, group)[first : first + self.window_blocks]
        blocks = blocks.astype(np.int64)
        sizes = self._cover(blocks)[2]
        places = np.concatenate([np.arange(size) for size in sizes])
        pairs = np.stack([np.repeat(blocks, sizes), places], axis=1)
        if not self.shuffle:
            return pairs
        order = draws.permutation(len(pairs), draws.row_key(self.seed, epoch, "window", window))
        return pairs[order.numpy()]


Labels = Callable[[int], np.ndarray]
"""What bucket each sample of a block falls in, by the block's number; -1 for none."""
