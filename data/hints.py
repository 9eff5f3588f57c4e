"""Pictures that belong to a sample's picture, cut and flipped as that was: edges, masks, layouts.

They come from a cache that an encoder filled, or are members of the sample itself. C channels,
H x W pixels.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RecipeError, ShardError, StaleCacheError
from . import storage
from .blocks import Blocks
from .cache import Cache, Held, open_cache
from .plan import Plan, Ref
from .transforms import Frame, Placed, covered, frame

_MEMORY = 64 << 20
"""Bytes of a cache's rows that are held, about."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One kind of picture beside the picture."""

    channels: int
    urls: tuple[str, ...] = ()
    """Its cache of each source of the plan; none where every sample has a member `name.npy`, uint8
    of shape (H, W) or (channels, H, W), as large as the sample's picture."""
    expect: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the cache's `Spec` must say, such as the encoder's digest."""


class Hints:
    """What a recipe wants of each sample. Safe to use from several threads.

    Raises:
        RecipeError: not a cache for each source of the plan.
        StaleCacheError: a cache is of other data, of another encoder, or not aligned.
    """

    def __init__(self, plan: Plan, wanted: Mapping[str, Wanted]) -> None:
        self.wanted = wanted
        self._caches = {name: _open(plan, name, one) for name, one in wanted.items() if one.urls}
        self._plan, self._lock = plan, threading.Lock()
        self._held: OrderedDict[tuple[str, *tuple[int, ...]], Held] = OrderedDict()

    def of(
        self, blocks: Blocks, ref: Ref, found: Mapping[str, Any], wanted: Frame, placed: Placed
    ) -> dict[str, np.ndarray]:
        """(C, height, width) uint8 by name, for the row that was cut at `placed`.

        Args:
            blocks: knows the sample's record.
            ref: the sample.
            found: the sample, decoded.
            wanted: how its picture was cut.
            placed: where it was cut.

        Raises:
            ShardError: the sample has none, or one of another size.
            StaleCacheError: the cache was made at another size.
        """
        rows: dict[str, np.ndarray] = {}
        for name, one in self.wanted.items():
            if one.urls:
                whole = self._row(blocks, ref, name)
                rows[name] = _cut(whole, wanted, placed, one, self._caches[name][ref.source].url)
            else:
                rows[name] = _member(name, found, wanted, placed, one)
        return rows

    def _row(self, blocks: Blocks, ref: Ref, name: str) -> np.ndarray:
        """A sample's row of a cache, read with the other rows of its block."""
        cache, record = self._caches[name][ref.source], blocks.record(ref)
        lines = blocks.lines[ref.source].of(ref.shard)
        shard = storage.name(self._plan.sources[ref.source].manifest.shards[ref.shard].url)
        block = self._plan.orders[ref.source].block(ref.block)
        mean = cache.manifest.bytes // max(1, cache.manifest.samples)
        if block.samples * mean > _MEMORY // 2:
            return _array(cache.of(shard, record), name, cache)
        place = (name, *ref[:4])
        with self._lock:
            if place not in self._held:
                span = range(block.first, block.first + block.samples)
                records = [lines.entry(position).record for position in span]
                self._held[place] = cache.hold(shard, records)
                while len(self._held) > 1 and self._bytes > _MEMORY:
                    self._held.popitem(last=False)
            self._held.move_to_end(place)
            held = self._held[place]
        return _array(held.of(record), name, cache)

    @property
    def _bytes(self) -> int:
        return sum(len(held.data) for held in self._held.values())


def _open(plan: Plan, name: str, one: Wanted) -> list[Cache]:
    if len(one.urls) != len(plan.sources):
        raise RecipeError(
            f"hints {name!r}: {len(one.urls)} caches for {len(plan.sources)} sources of data. "
            "Name one cache for each source, in their order."
        )
    expect = {"whole": True, **one.expect}
    return [
        open_cache(url, source.manifest, **expect)
        for url, source in zip(one.urls, plan.sources, strict=True)
    ]


def _array(arrays: Mapping[str, np.ndarray], name: str, cache: Cache) -> np.ndarray:
    if name not in arrays:
        raise StaleCacheError(
            f"{cache.url} holds {', '.join(sorted(arrays))}, not {name!r}. Name another cache."
        )
    return arrays[name]


def _cut(whole_CHW: np.ndarray, wanted: Frame, placed: Placed, one: Wanted, url: str) -> np.ndarray:
    across, down = covered((placed.width, placed.height), wanted)
    off = max(abs(whole_CHW.shape[1] - down), abs(whole_CHW.shape[2] - across))
    if whole_CHW.ndim != 3 or len(whole_CHW) != one.channels or off > 1:
        size = "x".join(map(str, wanted.fit))
        raise StaleCacheError(
            f"{url} holds pictures of shape {whole_CHW.shape} where the sample's has "
            f"{one.channels} channels to be cut from {across} x {down} pixels. Make it with --size "
            f"{size}, in another folder."
        )
    row = whole_CHW[:, placed.top : placed.top + wanted.height]
    row = row[:, :, placed.left : placed.left + wanted.width]
    short = wanted.height - row.shape[1], wanted.width - row.shape[2]
    if any(short):  # by the pixel that rounding may cost
        row = np.pad(row, ((0, 0), (0, short[0]), (0, short[1])), mode="edge")
    return row[..., ::-1] if placed.flipped else row


def _member(
    name: str, found: Mapping[str, Any], wanted: Frame, placed: Placed, one: Wanted
) -> np.ndarray:
    """The sample's own `name.npy`, resized and cut as the picture was."""
    array = found["arrays"].get(name)
    shape = (one.channels, placed.height, placed.width)
    if array is None:
        raise ShardError(f"it has no {name}.npy, and no cache is named in data.hints.{name}")
    if array.ndim == 2:
        array = array[None]
    if array.shape != shape or array.dtype != np.uint8:
        raise ShardError(
            f"{name}.npy is {array.dtype} of shape {array.shape}; its picture asks for uint8 of "
            f"shape {shape}"
        )
    layers = [np.repeat(layer[:, :, None], 3, axis=2) for layer in array]
    cuts = [frame(layer, wanted, 0, at=placed)[0].numpy()[0] for layer in layers]
    return np.stack(cuts)
