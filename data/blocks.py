"""The bytes of samples, read ahead of the steps that need them: whole blocks, within a limit.

A window's blocks are fetched once, kept while steps need them, and dropped when the stream has left
the window. A few rows are fetched alone: those of the first steps, so that training begins before a
window is here, a rare bucket's leftovers, whose window is long gone, and those of blocks that are
far larger than most of their source.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from . import fetch, storage
from .index import Entry, LineCache
from .order import BLOCK_BYTES
from .plan import Plan, Ref
from .records import Record

Place = tuple[int, int, int, int]
"""(source, epoch, window, block) of a block in memory."""
_PLACE = itemgetter(slice(4))
"""The place of a `Ref`."""
_LARGE = 4 * BLOCK_BYTES
"""Bytes beyond which a block is not read whole: its samples are larger than the mean by as much."""


class Raw(NamedTuple):
    """A sample as its shard holds it."""

    shard: str
    """URL of the shard."""
    record: Record
    blobs: dict[str, memoryview]
    """Bytes of each member, by extension."""


@dataclass
class _Read:
    """Bytes that are here or on their way."""

    bytes: int
    """How many; about, until the index lines were looked at."""
    future: Future[tuple[int, memoryview]] = field(init=False)
    whole: bool = True
    """False of a block that proved too large: there is none of it, its samples are read alone."""


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
        self._blocks: dict[Place, _Read] = {}
        self._alone: dict[Ref, _Read] = {}
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
        """Bytes that are here or on their way, about."""
        reads = [*self._blocks.values(), *self._alone.values()]  # at once: other threads take some
        return sum(read.bytes for read in reads)

    def want(self, refs: Sequence[Ref], *, hurry: bool = False) -> None:
        """Starts reading what is not here yet; in a hurry, large blocks are left for later."""
        for blocks in self.beside:
            blocks.want(refs, hurry=hurry)
        for source, epoch, window in {ref[:3] for ref in refs}:
            self._enter(source, epoch, window)
        if self.apart:
            return
        sizes = {
            place: self._about(place)
            for place in {*map(_PLACE, refs)}
            if place not in self._blocks or not self._blocks[place].whole
        }
        hurry = hurry and sum(self._mean[place[0]] for place in sizes) > 16 << 20
        for ref in refs:
            if ref[:4] not in sizes:
                continue
            old, known = ref[1:3] < self._newest[ref.source][0], ref[:4] in self._blocks
            if hurry or old or known or sizes[ref[:4]] > _LARGE:
                self._alone[ref] = self._read_alone(ref)
            else:
                self._blocks[ref[:4]] = self._read_whole(ref, sizes.pop(ref[:4]))

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
                start, data = self._wait(ref, block)
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
        for ref in refs:  # nobody took those of samples that are left out
            self._alone.pop(ref, None)
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

    def _about(self, place: Place) -> int:
        """Bytes of a block, if its samples are as large as those of its shard are on average."""
        block = self.plan.orders[place[0]].block(place[3])
        shard = self.plan.sources[place[0]].manifest.shards[block.shard]
        return block.samples * shard.bytes // shard.samples

    def _wait(self, ref: Ref, block: _Read | None) -> tuple[int, memoryview]:
        """Bytes with a visit's sample, and where in its shard they begin."""
        if alone := self._alone.pop(ref, None):
            return alone.future.result()
        if block:
            found = block.future.result()
            if block.whole:
                return found
        return self._read_alone(ref).future.result()

    def _read_alone(self, ref: Ref) -> _Read:
        shard = self.plan.sources[ref.source].manifest.shards[ref.shard]
        read = _Read(shard.bytes // shard.samples)
        read.future = self.pool.submit(self._sample, ref, read)
        return read

    def _read_whole(self, ref: Ref, about: int) -> _Read:
        read = _Read(about)
        read.future = self.pool.submit(self._block, ref.source, ref.block, read)
        return read

    def _block(self, source: int, number: int, read: _Read) -> tuple[int, memoryview]:
        block = self.plan.orders[source].block(number)
        lines = self.lines[source].of(block.shard)
        first, last = lines.span(block.first, block.first + block.samples)
        read.whole = last - first <= _LARGE
        read.bytes = last - first if read.whole else 0
        if not read.whole:
            return first, memoryview(b"")
        return first, self._span(source, block.shard, first, last)

    def _sample(self, ref: Ref, read: _Read) -> tuple[int, memoryview]:
        first, last = self.record(ref).span()
        read.bytes = last - first
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
