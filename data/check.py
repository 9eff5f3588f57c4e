"""Every byte of a dataset against its index, with exact counts by reason."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import DataError, ShardError, StorageError
from . import storage
from .ahead import ahead
from .decode import is_known, sample
from .index import Entry, Manifest, Shard, entries
from .records import Record, scan

REPLACED = "replaced shard"


@dataclass
class Findings:
    """What a check found."""

    good: int = 0
    """Samples whose bytes are the indexed ones and can be decoded."""
    reasons: Counter[str] = field(default_factory=Counter[str])
    """How many samples are bad for which reason."""
    replaced: int = 0
    """Shards that are other objects (size or etag) than were indexed; their samples are counted
    as what they are all the same."""
    faults: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(reason, sentence) of the first `most` of each reason."""
    most: int = 1000
    _kept: Counter[str] = field(default_factory=Counter[str], repr=False)

    def note(self, reason: str, sentence: str, samples: int = 1) -> None:
        """Counts a fault."""
        self.reasons[reason] += samples
        self._keep(reason, sentence)

    def note_replaced(self, sentence: str) -> None:
        """Counts a shard that is another object now."""
        self.replaced += 1
        self._keep(REPLACED, sentence)

    def add(self, other: "Findings") -> None:
        """Takes over what was found in another shard."""
        self.good += other.good
        self.reasons += other.reasons
        self.replaced += other.replaced
        for reason, sentence in other.faults:
            self._keep(reason, sentence)

    def _keep(self, reason: str, sentence: str) -> None:
        if self._kept[reason] < self.most:
            self._kept[reason] += 1
            self.faults.append((reason, sentence))


def check(
    manifest: Manifest,
    done: Callable[[Shard], None] = lambda shard: None,
    *,
    threads: int = 4,
    most: int = 1000,
) -> Findings:
    """Reads every shard and compares it with its index; nothing stops the count.

    A thread holds one shard's index, one sample and the 8 MiB that are read ahead.

    Args:
        manifest: the dataset.
        done: told of each shard, in order.
        threads: shards read at once.
        most: faults kept of each reason; all are counted.
    """
    findings = Findings(most=most)
    for shard, found in ahead(lambda one: _shard(manifest, one, most), manifest.shards, threads):
        findings.add(found)
        done(shard)
    return findings


def _shard(manifest: Manifest, shard: Shard, most: int) -> Findings:
    findings = Findings(most=most)
    try:
        _check_shard(manifest, shard, findings)
    except (StorageError, DataError) as err:
        findings.note("stale index", str(err), shard.samples)
    return findings


def _check_shard(manifest: Manifest, shard: Shard, findings: Findings) -> None:
    expected = entries(manifest, shard)
    seen = 0
    try:
        _check_object(shard, findings)
        with storage.open_read(shard.url) as file, storage.explained(shard.url):
            found = scan(file, shard=shard.url, held=is_known)
            for position, (record, blobs) in enumerate(found):
                entry = expected[position] if position < len(expected) else None
                if entry and _is_part(record, entry.record):
                    continue  # damage has taken the rest of it: it counts among the unseen
                _check_sample(shard, entry, record, blobs, findings)
                seen += 1
    except (ShardError, StorageError) as err:
        reason = "unreadable shard" if isinstance(err, ShardError) else "unreachable shard"
        findings.note(reason, str(err), max(0, len(expected) - seen))
        return
    if seen < len(expected):
        sentence = f"{storage.shown(shard.url)}: {seen} samples, its index has {len(expected)}"
        findings.note("missing sample", sentence, len(expected) - seen)


def _check_object(shard: Shard, findings: Findings) -> None:
    size, etag = storage.stat(shard.url)
    if (size, etag) != (shard.bytes, shard.etag):
        findings.note_replaced(
            f"{storage.shown(shard.url)} is not the object that was indexed: {size} bytes, "
            f"etag {etag}, not {shard.bytes} bytes, etag {shard.etag}. Index it again."
        )


def _is_part(record: Record, whole: Record) -> bool:
    return record.key == whole.key and set(record.members) < set(whole.members)


def _check_sample(
    shard: Shard, entry: Entry | None, record: Record, blobs: dict[str, bytes], findings: Findings
) -> None:
    where = f"{storage.shown(shard.url)}: {record.key}"
    if entry is None or _places(entry.record) != _places(record):
        findings.note("not indexed", f"{where} is not what the index has there")
        return
    try:
        sample(entry.record, blobs, shard=shard.url)
    except ShardError as err:
        findings.note("cannot be decoded" if record == entry.record else "changed", str(err))
    else:
        if record == entry.record:
            findings.good += 1
        else:  # a member that is never decoded
            findings.note("changed", f"{where} has other bytes than were indexed (crc32)")


def _places(record: Record) -> tuple[str, dict[str, tuple[int, int]]]:
    return record.key, {e: (m.offset, m.size) for e, m in record.members.items()}
