"""Which samples make step n: a pure function of the data, the recipe and n.

The data is one source or several mixed by weight; with buckets, a batch is of one bucket and comes
when the stream has brought enough of it. World size, workers and restarts only slice the sequence.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ..config import digest
from ..errors import DataError
from . import storage
from .buckets import Buckets, Table, count
from .index import LineCache, Manifest
from .mix import Mix
from .order import Order
from .paging import Paging


class Source(NamedTuple):
    """A dataset and its share of the rows."""

    manifest: Manifest
    weight: float = 1.0
    name: str = ""
    """Stands before a shard's name in keys and ledgers, where several sources could share one."""
    loss: float | None = None
    """What the mean loss of its own rows counts in the whole; None where all rows count alike."""

    def label(self, shard: str) -> str:
        """A shard, by its URL or its name, as keys and ledgers name it."""
        return f"{self.name}/{storage.name(shard)}" if self.name else storage.name(shard)


class Ref(NamedTuple):
    """One visit of one sample."""

    source: int
    epoch: int
    window: int
    """Which window of the epoch the visit falls in."""
    block: int
    """Which block of the source holds the sample."""
    shard: int
    position: int
    """Place of the sample in its shard."""


class Plan:
    """The sequence of global batches: endless, its epochs without a seam.

    Args:
        sources: a dataset, or several with their weights.
        seed: of every permutation.
        batch: rows of a global batch.
        shuffle: False visits the samples as they lie in their shards.
        buckets: what batches are sorted by; by default nothing.
        counted: told of each shard whose samples were counted by bucket.

    Raises:
        DataError: too few samples for a batch.
    """

    def __init__(
        self,
        sources: Manifest | Sequence[Source],
        seed: int,
        batch: int,
        *,
        shuffle: bool = True,
        buckets: Buckets | None = None,
        counted: Callable[[int], None] = lambda shards: None,
    ) -> None:
        mixed = (Source(sources),) if isinstance(sources, Manifest) else tuple(sources)
        if not mixed:
            raise DataError("there is no source to read from. Name one in data.train.")
        self.sources, self.seed, self.batch, self.shuffle = mixed, seed, batch, shuffle
        self.buckets = buckets or Buckets()
        self.mix = Mix([source.weight for source in mixed])
        self.orders = [
            Order(source.manifest, f"{seed}/{number}" if number else seed, shuffle=shuffle)
            for number, source in enumerate(mixed)
        ]
        for source, slots in zip(mixed, self.mix.slots.tolist(), strict=True):
            if source.loss is not None:  # a few samples on purpose, seen again and again
                continue
            rows = -(-batch * slots // len(self.mix.pattern))
            self._require(source.manifest.samples, source.manifest.url, rows=rows)
        self._sorted = functools.lru_cache(2)(self._rows_of)
        self.tables: list[Table] = []
        self._paging: Paging | None = None
        if self.buckets.count > 1 or self.buckets.sizes:
            self._count(counted)

    def reading(self, manifests: Sequence[Manifest]) -> "Plan":
        """The same steps, whose bytes lie elsewhere: manifests with the same samples in order."""
        other = copy.copy(self)
        other.sources = tuple(
            source._replace(manifest=manifest)
            for source, manifest in zip(self.sources, manifests, strict=True)
        )
        return other

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(source.manifest.samples for source in self.sources)

    @property
    def steps_per_epoch(self) -> float:
        """Steps after which every source has been seen once or more, dropped samples aside."""
        cycle, slots = len(self.mix.pattern), self.mix.slots.tolist()
        samples = [source.manifest.samples for source in self.sources]
        kept = [int(table.counts_NB.sum()) for table in self.tables] or samples
        rows = max(Fraction(n * cycle, share) for n, share in zip(samples, slots, strict=True))
        trained = sum(
            rows * Fraction(share * keeps, cycle * n)
            for n, keeps, share in zip(samples, kept, slots, strict=True)
        )
        return float(trained / self.batch)

    @property
    def data(self) -> str:
        """Digest of the datasets: it changes when any sample of any source does."""
        digests = [source.manifest.digest for source in self.sources]
        return digests[0] if len(digests) == 1 else _hash(digests)

    @property
    def digest(self) -> str:
        """Digest of all that decides the sequence of batches."""
        weights = self.mix.slots.tolist()
        return _hash([self.data, weights, digest(self.buckets), self.seed, self.batch])

    def table(self) -> list[dict[str, Any]]:
        """What the buckets hold: name, samples of an epoch, mean share cropped; dropped last."""
        if not self.tables:
            return []
        counts_B = np.sum([table.counts_NB.sum(0, dtype=np.int64) for table in self.tables], 0)
        crops_B = np.sum([table.crops_B for table in self.tables], 0) / np.maximum(1, counts_B)
        rows: list[dict[str, Any]] = [
            {"bucket": self.buckets.name(number), "samples": int(samples), "cropped": float(crop)}
            for number, (samples, crop) in enumerate(zip(counts_B, crops_B, strict=True))
        ]
        dropped = self.samples - int(np.sum(counts_B))
        return [*rows, {"bucket": "dropped", "samples": dropped, "cropped": 0.0}]

    def state(self, step: int) -> dict[str, Any]:
        """The small record that says where the stream stands after `step` steps."""
        row = self._paging.frontier(step) if self._paging else step * self.batch
        before = self.mix.before(row).tolist()
        places = [
            dict(zip(("epoch", "position"), divmod(seen, source.manifest.samples), strict=True))
            for seen, source in zip(before, self.sources, strict=True)
        ]
        return {"plan": self.digest, "step": step, "sources": places}

    def bucket(self, step: int) -> int:
        """The bucket of a step's batch."""
        return self._paging.bucket(step) if self._paging else 0

    def step(self, step: int) -> list[Ref]:
        """The global batch of a step, ordered by place so that a slice of it reads neighbours."""
        return self._refs(step, 0, self.batch)

    def rows(self, step: int, rank: int, world: int) -> list[Ref]:
        """The rows of a step that a rank trains on; all ranks have equally many."""
        size, rest = divmod(self.batch, world)
        if rest:
            raise DataError(
                f"a global batch of {self.batch} rows cannot be cut into {world} equal parts. "
                "Choose a batch that the number of workers divides."
            )
        return self._refs(step, rank * size, (rank + 1) * size)

    def label(self, ref: Ref) -> str:
        """The shard of a visit as keys and ledgers name it."""
        source = self.sources[ref.source]
        return source.label(source.manifest.shards[ref.shard].url)

    def _refs(self, step: int, first: int, last: int) -> list[Ref]:
        rows = self._sorted(step)[first:last].tolist()
        return [Ref(*row) for row in rows]

    def _rows_of(self, step: int) -> np.ndarray:
        """(batch, 6): the columns of `Ref`, by source, epoch, shard and position."""
        if self._paging:
            rows = self._paging.rows(step)
        else:
            rows = np.arange(step * self.batch, (step + 1) * self.batch)
        source, visits = self.mix.split(rows)
        found = np.empty((len(rows), 6), dtype=np.int64)
        found[:, 0] = source
        for number, order in enumerate(self.orders):
            here = source == number
            if here.any():
                found[here, 1:] = order.visits(visits[here])
        return found[np.lexsort((found[:, 5], found[:, 4], found[:, 1], found[:, 0]))]

    def _count(self, counted: Callable[[int], None]) -> None:
        self.tables = [
            count(source.manifest, order, self.buckets, done=counted)
            for source, order in zip(self.sources, self.orders, strict=True)
        ]
        self._require(
            sum(int(table.counts_NB.sum()) for table in self.tables),
            " and ".join(source.manifest.url for source in self.sources),
            "that fit a bucket ",
        )
        labels = [
            _labels(source.manifest, order, self.buckets)
            for source, order in zip(self.sources, self.orders, strict=True)
        ]
        self._paging = Paging(self.mix, self.orders, self.tables, labels, self.batch)

    def _require(self, samples: int, where: str, which: str = "", rows: int | None = None) -> None:
        """Refuses samples that cannot fill a batch, or the `rows` of it that are theirs."""
        rows = self.batch if rows is None else rows
        if samples < rows:
            share = f"its {rows} rows of " if rows < self.batch else ""
            raise DataError(
                f"{where}: {samples} samples {which}cannot fill {share}a batch of {self.batch}. "
                f"Lower the batch{' or its weight' if share else ''}, or add samples."
            )


def _labels(manifest: Manifest, order: Order, buckets: Buckets) -> Callable[[int], np.ndarray]:
    """Reads what bucket each sample of a block falls in."""
    lines = LineCache(manifest)

    def labels(block: int) -> np.ndarray:
        shard, first, samples = order.block(block)
        return buckets.assign(lines.of(shard).shapes(first, first + samples))

    return labels


def _hash(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
