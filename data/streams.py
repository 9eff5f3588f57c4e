"""Tars as WebDataset yields them, for code that expects an iterable of such samples.

No index is needed and nothing is exact over restarts: for that there is the `Loader`.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import DataError, ShardError
from . import draws, storage
from .records import scan

Sample = dict[str, Any]
"""`__key__`, `__url__`, and each member's bytes by extension."""


class Stream(IterableDataset[Sample]):
    """The samples of tars; made by `stream`, and pickled into DataLoader workers as it is."""

    def __init__(
        self,
        urls: list[str],
        *,
        shuffle: int,
        seed: int,
        rank: int,
        world: int,
        on_fault: Callable[[ShardError], None] | None,
    ) -> None:
        self.urls, self.shuffle, self.seed = urls, shuffle, seed
        self.rank, self.world, self.on_fault = rank, world, on_fault
        # In shared memory, because workers that outlive an epoch have copies of all else.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose order the next iteration has."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration; call it before each epoch when shuffling."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        """Yields the samples of this rank's and this worker's shards."""
        urls = self.urls
        if self.shuffle:
            order = draws.permutation(len(urls), draws.row_key(self.seed, self.epoch, "shards"))
            urls = [urls[place] for place in order]
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = urls[self.rank :: self.world][number::workers]
        samples = (sample for url in mine for sample in self._shard(url))
        if self.shuffle:
            key = draws.row_key(self.seed, self.epoch, self.rank, number)
            samples = _shuffled(samples, self.shuffle, random.Random(key))
        return samples

    def _shard(self, url: str) -> Iterator[Sample]:
        try:
            with storage.open_read(url) as file, storage.explained(url):
                last: Sample | None = None
                for record, blobs in scan(file, shard=url):
                    # One behind: the sample that damage cuts short is the last before the error.
                    if last:
                        yield last
                    last = {"__key__": record.key, "__url__": url, **blobs}
                if last:
                    yield last
        except ShardError as err:
            if self.on_fault is None:
                raise
            self.on_fault(err)


def stream(
    urls: str | list[str],
    *,
    shuffle: int = 0,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    on_fault: Callable[[ShardError], None] | None = None,
) -> Stream:
    """An IterableDataset of what `webdataset.WebDataset(urls)` yields: keys, bytes, order.

    Shards are dealt out over ranks, then over DataLoader workers, as WebDataset's
    `split_by_node` and `split_by_worker` do. It composes with WebDataset's own stages:
    `wds.DataPipeline(stream(urls), wds.map(...), wds.batched(8))`.

    Args:
        urls: tars, or folders of them; brace ranges and globs are expanded, s3://, file:// and
            https:// are read.
        shuffle: samples in the shuffle buffer; shards are shuffled too. 0 keeps the order.
        seed: of the shuffle; the same seed and epoch give the same order.
        rank: of this process.
        world: number of processes.
        on_fault: told of a damaged shard, whose remaining samples are left out; by default it
            is raised.

    Raises:
        DataError: fewer shards than ranks, of which some would starve; or no such rank.
        StorageError: another scheme, or a pattern that matches nothing.
    """
    if not 0 <= rank < world:
        raise DataError(f"there is no rank {rank} of {world}; ranks count from 0.")
    found = storage.shards(urls)
    if not found:
        raise DataError("no URL of a shard is given. Name one: s3://bucket/set/{00000..00099}.tar")
    if len(found) < world:
        raise DataError(
            f"{len(found)} shards for {world} ranks: {world - len(found)} would get no samples. "
            "Write more shards, or use the Loader, which deals out samples."
        )
    return Stream(found, shuffle=shuffle, seed=seed, rank=rank, world=world, on_fault=on_fault)


def _shuffled(samples: Iterable[Sample], size: int, draw: random.Random) -> Iterator[Sample]:
    waiting: list[Sample] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) > size:
            place = draw.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()
    draw.shuffle(waiting)
    yield from waiting
