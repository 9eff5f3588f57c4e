"""Aspect-ratio and text-length buckets: which batch shape a sample belongs to, from the index.

Aspect buckets after NovelAI's (2022): a sample goes to the frame whose aspect ratio is nearest,
so that a crop takes little away. S sizes, N samples.
"""

import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from pydantic import Field, field_validator

from ..config import Record, digest
from ..errors import StorageError
from . import storage
from .index import Manifest, open_lines
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

    def assign(self, shapes_3N: np.ndarray) -> np.ndarray:
        """(N,) bucket of samples, -1 where none fits.

        The nearest aspect ratio wins; of frames that share it the largest that needs no enlarging,
        else the smallest.

        Args:
            shapes_3N: width and height of the image in pixels, 0 for none, and characters of text.
        """
        width_N, height_N, chars_N = shapes_3N
        size_N, fits_N = np.zeros(len(width_N), dtype=np.int64), np.ones(len(width_N), dtype=bool)
        if self.sizes:
            imaged_N = (width_N > 0) & (height_N > 0)
            sides_2N = np.where(imaged_N, shapes_3N[:2], 1)
            scale_SN = self._scales(*sides_2N)
            size_N = self._choose(sides_2N, scale_SN)
            fits_N = imaged_N & (scale_SN[size_N, np.arange(len(size_N))] <= self.enlarge)
        length_N = np.searchsorted(np.array(self.lengths, dtype=np.int64), chars_N)
        return np.where(fits_N, size_N * (len(self.lengths) + 1) + length_N, -1)

    def crops(self, bucket_N: np.ndarray, shapes_3N: np.ndarray) -> np.ndarray:
        """(N,) share of each image's pixels that its bucket's frame cuts away, 0 to 1."""
        if not self.sizes:
            return np.zeros(len(bucket_N))
        size_N = bucket_N // (len(self.lengths) + 1)
        scale_N = self._scales(*shapes_3N[:2])[size_N, np.arange(len(size_N))]
        area_N = np.array(self.sizes).prod(1)[size_N]
        return 1 - area_N / (scale_N**2 * shapes_3N[0] * shapes_3N[1])

    def _choose(self, sides_2N: np.ndarray, scale_SN: np.ndarray) -> np.ndarray:
        frames_S2 = np.array(self.sizes, dtype=float)
        aspect_S = np.log(frames_S2[:, 0] / frames_S2[:, 1])
        off_SN = np.abs(np.log(sides_2N[0] / sides_2N[1]) - aspect_S[:, None]).round(6)
        area_S = frames_S2.prod(1)[:, None]
        grows_SN = scale_SN > 1
        order_SN = np.lexsort((np.where(grows_SN, area_S, -area_S), grows_SN, off_SN), axis=0)
        return order_SN[0]

    def _scales(self, width_N: np.ndarray, height_N: np.ndarray) -> np.ndarray:
        """(S, N) by how much each image must be scaled to cover each frame."""
        frames_S2 = np.array(self.sizes, dtype=float)
        across_SN = frames_S2[:, :1] / width_N
        return np.maximum(across_SN, frames_S2[:, 1:] / height_N)


@dataclass(frozen=True)
class Table:
    """How a source's samples fall into the buckets. N blocks, B buckets."""

    counts_NB: np.ndarray
    """uint16, samples of each block in each bucket; what is missing was dropped."""
    crops_B: np.ndarray
    """float64, sum over a bucket's samples of the share that is cut away."""


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
        # Damaged on its way, perhaps: one more read will tell.
        if table := _load(url, order, buckets) or _load(url, order, buckets):
            return table
        log.warning("%s is damaged; it is counted again", storage.shown(url))
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
        shapes_3N = lines.shapes(first, first + samples)
        bucket_N = buckets.assign(shapes_3N)
        kept = bucket_N >= 0
        found_N = bucket_N[kept]
        cut_N = buckets.crops(found_N, shapes_3N[:, kept])
        yield (
            block,
            np.bincount(found_N, minlength=buckets.count),
            np.bincount(found_N, weights=cut_N, minlength=buckets.count),
        )


def _keep(url: str, table: Table) -> None:
    blob = io.BytesIO()
    np.savez_compressed(blob, counts=table.counts_NB, crops=table.crops_B)
    try:
        storage.write(url, blob.getvalue())
    except StorageError as err:
        log.warning("the bucket table is not kept, and will be counted again: %s", err)


def _load(url: str, order: Order, buckets: Buckets) -> Table | None:
    """The table that was kept; None where it is damaged."""
    data = storage.read(url)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            table = Table(found["counts"], found["crops"])
    except Exception:  # NumPy and zipfile have many words for it
        return None
    return table if table.counts_NB.shape == (order.blocks, buckets.count) else None
