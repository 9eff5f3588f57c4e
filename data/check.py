"""Every byte of a dataset against its index, with exact counts by reason."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import DataError, ShardError, StorageError
from . import storage
from .decode import sample
from .index import Entry, Manifest, Shard, entries
from .records import Record, scan


@dataclass
class Findings:
    """What a check found."""

    good: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    """How many samples, or whole shards, are bad for which reason."""
    faults: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(reason, sentence) of each."""

    def note(self, reason: str, sentence: str, samples: int = 1) -> None:
        """Counts a fault."""
        self.reasons[reason] += samples
        self.faults.append((reason, sentence))


def check(manifest: Manifest, done: Callable[[Shard], None] = lambda shard: None) -> Findings:
    """Reads every shard and compares it with its index; nothing stops the count."""
    findings = Findings()
    for shard in manifest.shards:
        try:
            _check_shard(manifest, shard, findings)
        except (StorageError, DataError) as err:
            findings.note("stale index", str(err), shard.samples)
        done(shard)
    return findings


def _check_shard(manifest: Manifest, shard: Shard, findings: Findings) -> None:
    expected = entries(manifest, shard)
    seen = 0
    try:
        with storage.open_read(shard.url) as file, storage.explained(shard.url):
            for position, (record, blobs) in enumerate(scan(file, shard=shard.url)):
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
        sentence = f"{shard.url}: {seen} samples, its index has {len(expected)}"
        findings.note("missing sample", sentence, len(expected) - seen)


def _is_part(record: Record, whole: Record) -> bool:
    return record.key == whole.key and set(record.members) < set(whole.members)


def _check_sample(
    shard: Shard, entry: Entry | None, record: Record, blobs: dict[str, bytes], findings: Findings
) -> None:
    if entry is None or _places(entry.record) != _places(record):
        findings.note("not indexed", f"{shard.url}: {record.key} is not what the index has there")
        return
    try:
        sample(entry.record, blobs, shard=shard.url)
    except ShardError as err:
        findings.note("cannot be decoded" if record == entry.record else "changed", str(err))
    else:
        findings.good += 1


def _places(record: Record) -> tuple[str, dict[str, tuple[int, int]]]:
    return record.key, {e: (m.offset, m.size) for e, m in record.members.items()}
