"""Aspect-ratio and text-length buckets: which batch shape a sample belongs to, from the index.

Aspect buckets after NovelAI's (2022): a sample goes to the frame whose aspect ratio is nearest,
so that a crop takes little away. Buckets S sizes x T lengths.
"""

import io
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from pydantic import Field, field_validator

from ..config import Record, digest
from ..errors import DataError, StorageError
from . import storage
from .index import Entry, Manifest, open_lines
from .order import Order

log = logging.getLogger("diptych")


class Buckets(Record):
    """The table of buckets; empty, every sample is in the one bucket there is."""

    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) in pixels of the frames; none leaves the model's own square."""
    lengths: tuple[int, ...] = ()
    """Upper bounds in characters of the text, ascending; a last bucket takes what is longer."""
    enlarge: float = Field(default=2.0, ge=1)
    """Samples whose image would have to grow by more than this factor are dropped."""

    @field_validator("sizes")
    @classmethod
    def _positive(cls, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if any(side < 1 for size in sizes for side in size) or len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes {sizes} must be different and positive")
        return sizes

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted({*lengths}) or any(length < 1 for length in lengths):
            raise ValueError(f"lengths {lengths} must ascend from 1 or more")
        return lengths

    @property
    def count(self) -> int:
        """Number of buckets."""
        return max(1, len(self.sizes)) * (len(self.lengths) + 1)

    def size(self, bucket: int) -> tuple[int, int] | None:
        """(width, height) of a bucket's frame; None without sizes."""
        return self.sizes[bucket // (len(self.lengths) + 1)] if self.sizes else None

    def name(self, bucket: int) -> str:
        """A bucket as the table prints it."""
        size, length = self.size(bucket), bucket % (len(self.lengths) + 1)
        bounds = [*(f"<= {bound} chars" for bound in self.lengths), "longer"]
        parts = [f"{size[0]}x{size[1]}"] if size else []
        return ", ".join([*parts, *([bounds[length]] if self.lengths else [])]) or "all"

    def assign(self, width: int | None, height: int | None, chars: int = 0) -> int:
        """The bucket of a sample with an image of width x height pixels; -1 where none fits.

        Of frames with one aspect ratio the largest that needs no enlarging wins, else the smallest.
        """
        size = 0
        if self.sizes:
            if not width or not height:
                return -1
            size = min(range(len(self.sizes)), key=lambda one: self._rank(one, width, height))
            if self._scale(size, width, height) > self.enlarge:
                return -1
        length = sum(chars > bound for bound in self.lengths)
        return size * (len(self.lengths) + 1) + length

    def crop(self, bucket: int, width: int, height: int) -> float:
        """Share of the image's pixels that a bucket's frame cuts away, 0 to 1."""
        size = self.size(bucket)
        if size is None:
            return 0.0
        scale = max(size[0] / width, size[1] / height)
        return 1 - size[0] * size[1] / (scale * scale * width * height)

    def _rank(self, size: int, width: int, height: int) -> tuple[float, bool, float]:
        frame_width, frame_height = self.sizes[size]
        off = abs(math.log(width / height) - math.log(frame_width / frame_height))
        grows = self._scale(size, width, height) > 1
        area = frame_width * frame_height
        return round(off, 6), grows, area if grows else -area

    def _scale(self, size: int, width: int, height: int) -> float:
        return max(self.sizes[size][0] / width, self.sizes[size][1] / height)


@dataclass(frozen=True)
class Table:
    """How a source's samples fall into the buckets. N blocks, B buckets."""

    counts_NB: np.ndarray
    """uint16, samples of each block in each bucket; what is missing was dropped."""
    crops_B: np.ndarray
    """float64, sum over a bucket's samples of the share that is cut away."""


def label(buckets: Buckets, entry: Entry) -> int:
    """The bucket of an indexed sample, -1 for none."""
    return buckets.assign(entry.width, entry.height, entry.text_chars)


def count(
    manifest: Manifest,
    order: Order,
    buckets: Buckets,
    *,
    threads: int = 8,
    done: Callable[[int], None] = lambda shards: None,
) -> Table:
    """Counts every shard's samples by bucket; kept beside the index, so it is done once.

    Args:
        manifest: the source.
        order: its order, which cuts the shards into blocks.
        buckets: the table to count by.
        threads: shards read at once.
        done: told of each counted shard.
    """
    meaning = digest({"buckets": digest(buckets), "data": manifest.digest})
    url = storage.join(manifest.url, f"buckets-{meaning}-{order.block_samples}.npz")
    if storage.exists(url):
        return _load(url, order, buckets)
    counts = np.zeros((order.blocks, buckets.count), dtype=np.uint16)
    crops = np.zeros(buckets.count)

    def one(number: int) -> np.ndarray:
        cuts = np.zeros(buckets.count)
        for block, found, cut in _count_shard(manifest, number, order, buckets):
            counts[block] = found
            cuts += cut
        return cuts

    with ThreadPoolExecutor(threads) as pool:
        for cuts in pool.map(one, range(len(manifest.shards))):
            crops += cuts
            done(1)
    table = Table(counts, crops)
    _keep(url, table)
    return table


def _count_shard(
    manifest: Manifest, number: int, order: Order, buckets: Buckets
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    lines = open_lines(manifest, manifest.shards[number])
    for block in order.shard_blocks(number):
        _, first, samples = order.block(block)
        found, cut = np.zeros(buckets.count, dtype=np.uint16), np.zeros(buckets.count)
        for entry in lines.entries(first, first + samples):
            bucket = label(buckets, entry)
            if bucket >= 0:
                found[bucket] += 1
                cut[bucket] += buckets.crop(bucket, entry.width or 1, entry.height or 1)
        yield block, found, cut


def _keep(url: str, table: Table) -> None:
    blob = io.BytesIO()
    np.savez_compressed(blob, counts=table.counts_NB, crops=table.crops_B)
    try:
        storage.write(url, blob.getvalue())
    except StorageError as err:
        log.warning("the bucket table is not kept, and will be counted again: %s", err)


def _load(url: str, order: Order, buckets: Buckets) -> Table:
    try:
        with np.load(io.BytesIO(storage.read(url)), allow_pickle=False) as found:
            table = Table(found["counts"], found["crops"])
    except (ValueError, KeyError, OSError) as err:
        raise DataError(f"{url} is damaged: {err}. Delete it; it will be counted again.") from err
    if table.counts_NB.shape != (order.blocks, buckets.count):
        raise DataError(f"{url} does not fit its index. Delete it; it will be counted again.")
    return table
