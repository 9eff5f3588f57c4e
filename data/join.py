"""Caches beside a plan: their rows come in the same stream as the samples, joined by key and hash.

A cache has a shard for each of the dataset's, with the same samples in the same order, so that the
plan of the dataset says what to fetch of it. Where a row lies is a hint; that it is the sample's is
proven by its key and by the hash of all that it was made of.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CrcError, ShardError, StaleCacheError
from . import kept, storage
from .blocks import Blocks, Raw
from .cache import Cache, content
from .decode import sample
from .plan import Plan, Ref
from .records import Record


class Joined:
    """The caches of a plan's sources.

    Args:
        plan: of the datasets.
        caches: of each source, as many and of the same encoders for each.

    Raises:
        StaleCacheError: a cache does not have the samples of its dataset.
    """

    def __init__(self, plan: Plan, caches: Sequence[Sequence[Cache]]) -> None:
        for source, found in zip(plan.sources, caches, strict=True):
            for cache in found:
                _require_samples(source.manifest, cache)
        self.columns = list(zip(*caches, strict=True))
        """By cache, then by source."""
        self.plans = [plan.reading([cache.manifest for cache in column]) for column in self.columns]

    @property
    def images(self) -> bool:
        """Whether they stand for the images."""
        return any("image" in column[0].spec.reads for column in self.columns)

    @property
    def kept(self) -> bool:
        """Whether one of them, which then stands for the images, has the texts and records too."""
        return any(all(cache.note.kept for cache in column) for column in self.columns)

    def row(
        self, blocks: Blocks, ref: Ref, record: Record
    ) -> tuple[dict[str, np.ndarray], dict[str, memoryview] | None]:
        """The arrays of a sample by name, and what `kept.blobs` finds of its other members.

        Raises:
            ShardError: they are of another sample, of other bytes, damaged, or could not be made.
        """
        found: dict[str, np.ndarray] = {}
        beside_it: dict[str, memoryview] | None = None
        for column, beside in zip(self.columns, blocks.beside, strict=True):
            cache, raw = column[ref.source], beside.raw(ref)
            try:
                row = _row(raw)
            except CrcError:  # damaged on its way, perhaps: one more read will tell
                row = _row(beside.again(ref))
            found |= _proven(cache, raw, row, record)
            if beside_it is None:
                beside_it = kept.blobs(row["fields"], record)
        return found, beside_it


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Arrays of B rows by name, (B, ...); rows without any are zeros.

    Tables of different lengths (L, D) are filled up with zeros, and `name.real` (B, L) bool says
    which of their rows are.
    """
    found: dict[str, Tensor] = {}
    for name in sorted({name for row in rows for name in row}):
        arrays = [row.get(name) for row in rows]
        shapes = [array.shape for array in arrays if array is not None]
        most = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        table = np.zeros((len(rows), *most), np.float32)
        for place, array in enumerate(arrays):
            if array is not None:
                table[(place, *(slice(size) for size in array.shape))] = array
        found[name] = torch.from_numpy(table)
        if len(most) == 2:
            lengths_B = torch.tensor([0 if array is None else len(array) for array in arrays])
            found[f"{name}.real"] = torch.arange(most[0]) < lengths_B[:, None]
    return found


def _row(raw: Raw) -> dict[str, Any]:
    return sample(raw.record, raw.blobs, shard=raw.shard)


def _proven(cache: Cache, raw: Raw, row: dict[str, Any], record: Record) -> dict[str, np.ndarray]:
    where, fields = f"{raw.shard}: {raw.record.key}", row["fields"]
    if raw.record.key != record.key or fields.get("content") != content(cache.spec, record):
        raise StaleCacheError(
            f"{where} is not of the sample {record.key!r} as it is now (content "
            f"{fields.get('content')}, the sample's is {content(cache.spec, record)}). Make what "
            f"changed again: {cache.command}"
        )
    if "fault" in fields:
        raise ShardError(f"{where} could not be encoded: {fields['fault']}")
    return row["arrays"]


def _require_samples(source: Any, cache: Cache) -> None:
    ours = [(storage.name(shard.url), shard.samples) for shard in source.shards]
    theirs = [(storage.name(shard.url), shard.samples) for shard in cache.manifest.shards]
    if ours != theirs:
        raise StaleCacheError(
            f"{cache.url} has other shards than {source.url}. Make what changed again: "
            f"{cache.command}"
        )
