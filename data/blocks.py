"""The bytes of samples, read ahead of the steps that need them: whole blocks, within a limit.

A window's blocks are fetched once, kept while steps need them, and dropped when the stream has left
the window. A few rows are fetched alone: those of the first steps, so that training begins before a
window is here, and a rare bucket's leftovers, whose window is long gone.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import NamedTuple

from . import fetch, storage
from .index import Entry, LineCache
from .plan import Plan, Ref
from .records import Record

Place = tuple[int, int, int, int]
"""(source, epoch, window, block) of a block in memory."""
_PLACE = itemgetter(slice(4))
"""The place of a `Ref`."""


class Raw(NamedTuple):
    """A sample as its shard holds it."""

    shard: str
    """URL of the shard."""
    record: Record
    blobs: dict[str, memoryview]
    """Bytes of each member, by extension."""


class Blocks:
    """What is in memory of a plan's shards.

    Args:
        plan: what will be asked for.
        pool: threads that fetch.
        limit: bytes of blocks to hold or to be fetching; what the next step needs comes always.
        stop: set by another thread to end the waiting for a server that fails.
        beside: of other shards with rows for the same samples, wanted and dropped with these.
        apart: these are not to be read ahead, since the others have it all; `raw` still reads.
    """

    def __init__(
        self,
        plan: Plan,
        pool: ThreadPoolExecutor,
        limit: int = 256 << 20,
        stop: threading.Event | None = None,
        beside: Sequence["Blocks"] = (),
        apart: bool = False,
    ) -> None:
        self.beside, self.apart = tuple(beside), apart
        self.plan, self.pool, self.limit, self.stop = plan, pool, limit, stop
        self.lines = [LineCache(source.manifest) for source in plan.sources]
        self._blocks: dict[Place, Future[tuple[int, memoryview]]] = {}
        self._alone: dict[Ref, Future[tuple[int, memoryview]]] = {}
        self._newest: dict[int, list[tuple[int, int]]] = {}
        self._mean = [
            order.block_samples * source.manifest.bytes // source.manifest.samples
            for order, source in zip(plan.orders, plan.sources, strict=True)
        ]

    @property
    def full(self) -> bool:
        """Whether more blocks would pass the limit."""
        return self.held >= self.limit or any(blocks.full for blocks in self.beside)

    @property
    def held(self) -> int:
        """Bytes of blocks that are here or on their way, about."""
        return sum(self._mean[place[0]] for place in self._blocks)

    def want(self, refs: Sequence[Ref], *, hurry: bool = False) -> None:
        """Starts reading what is not here yet; in a hurry, large blocks are left for later."""
        for blocks in self.beside:
            blocks.want(refs, hurry=hurry)
        for source, epoch, window in {ref[:3] for ref in refs}:
            self._enter(source, epoch, window)
        if self.apart:
            return
        missing = {place for place in map(_PLACE, refs) if place not in self._blocks}
        if not missing:
            return
        hurry = hurry and sum(self._mean[place[0]] for place in missing) > 16 << 20
        for ref in refs:
            if ref[:4] in self._blocks:
                continue
            if hurry or ref[1:3] < self._newest[ref.source][0]:
                self._alone[ref] = self.pool.submit(self._read_alone, ref)
            else:
                self._blocks[ref[:4]] = self.pool.submit(self._read, ref.source, ref.block)

    def raw(self, ref: Ref) -> Raw:
        """A visit's sample; waits for its bytes."""
        return self.raws([ref])[0]

    def raws(self, refs: Sequence[Ref]) -> list[Raw]:
        """The samples of visits; what a block is asked for is asked once for its neighbours."""
        found: list[Raw] = []
        for _, group in itertools.groupby(refs, _PLACE):
            mine = list(group)
            block = self._blocks.get(mine[0][:4])
            lines = self.lines[mine[0].source].of(mine[0].shard)
            url = self._url(mine[0].source, mine[0].shard)
            for ref in mine:
                alone = self._alone.pop(ref, None)
                future = alone or block or self.pool.submit(self._read_alone, ref)
                start, data = future.result()
                found.append(_cut(url, lines.entry(ref.position).record, start, data))
        return found

    def again(self, ref: Ref) -> Raw:
        """A visit's sample, read anew: perhaps the bytes in memory were damaged on their way.

        Raises:
            ReplacedError: the shard is not the object that was indexed.
        """
        first, last = self.record(ref).span()
        data = self._span(ref.source, ref.shard, first, last, strict=True)
        return _cut(self._url(ref.source, ref.shard), self.record(ref), first, data)

    def entry(self, ref: Ref) -> Entry:
        """What the index says of a visit's sample."""
        return self.lines[ref.source].of(ref.shard).entry(ref.position)

    def record(self, ref: Ref) -> Record:
        """Where the members of a visit's sample are."""
        return self.entry(ref).record

    def url(self, ref: Ref) -> str:
        """The shard of a visit's sample."""
        return self._url(ref.source, ref.shard)

    def forget(self, refs: Sequence[Ref]) -> None:
        """Drops the blocks of windows that no step after the one with `refs` will ask for."""
        for blocks in self.beside:
            blocks.forget(refs)
        windows = {ref[:3] for ref in refs}
        for source in {window[0] for window in windows}:
            oldest = min(window[1:] for window in windows if window[0] == source)
            oldest = max(oldest, self._newest[source][0]) if self.plan.tables else oldest
            for place in [place for place in self._blocks if place[0] == source]:
                if place[1:3] < oldest:
                    del self._blocks[place]

    def _enter(self, source: int, epoch: int, window: int) -> None:
        """Remembers the two newest windows of each source, oldest first."""
        known = self._newest.get(source, [])
        self._newest[source] = sorted({*known, (epoch, window)})[-2:]

    def _read(self, source: int, number: int) -> tuple[int, memoryview]:
        block = self.plan.orders[source].block(number)
        lines = self.lines[source].of(block.shard)
        first, last = lines.span(block.first, block.first + block.samples)
        return first, self._span(source, block.shard, first, last)

    def _read_alone(self, ref: Ref) -> tuple[int, memoryview]:
        first, last = self.record(ref).span()
        return first, self._span(ref.source, ref.shard, first, last)

    def _span(
        self, source: int, shard: int, first: int, last: int, *, strict: bool = False
    ) -> memoryview:
        """Bytes of a shard that is still the object which was indexed.

        A file's mark is its time of change, which a copied dataset does not keep: it is looked at
        only when bytes are not what they should be.
        """
        url = self._url(source, shard)
        etag = self.plan.sources[source].manifest.shards[shard].etag
        same = None if storage.is_local(url) and not strict else etag
        return fetch.span(url, first, last, etag=same, stop=self.stop)

    def _url(self, source: int, shard: int) -> str:
        return self.plan.sources[source].manifest.shards[shard].url


def _cut(url: str, record: Record, start: int, data: memoryview) -> Raw:
    """A sample out of bytes of its shard that begin at `start`."""
    blobs = {
        extension: data[offset - start : offset - start + size]
        for extension, (offset, size, _) in record.members.items()
    }
    return Raw(url, record, blobs)
