"""The texts and records that a cache of images keeps, so that the shards need not be read again.

They lie in the JSON of a cache's row, as they are in the sample, and are proven by the crc32 that
the dataset's index has of them now. One that is too large, or no UTF-8, is not kept.
"""

import hashlib
import json
from collections.abc import Mapping

from isal import isal_zlib

from ..errors import CrcError
from .cache import Spec
from .index import Lines
from .records import Record

NAMES = ("cls", "json", "txt")
"""Members that a loader reads beside the picture."""
_MOST = 64 << 10
"""Bytes of a member that is kept."""


def wanted(spec: Spec) -> bool:
    """Whether such a cache stands for the images of a dataset, so that it pays to keep the rest."""
    return "image" in spec.reads and not spec.whole


def cut(record: Record, data: bytes, start: int, shard: str) -> dict[str, str] | None:
    """What is kept of a sample, by extension; None where something cannot be.

    Args:
        record: where its members are.
        data: bytes of its shard that begin at `start`.
        start: see `data`.
        shard: named in errors.

    Raises:
        CrcError: the bytes are not those that were indexed.
    """
    found: dict[str, str] = {}
    for name in NAMES:
        if name not in record.members:
            continue
        member = record.members[name]
        blob = data[member.offset - start : member.offset - start + member.size]
        if isal_zlib.crc32(blob) != member.crc32:
            raise CrcError(
                f"{shard}: {record.key}.{name} is not the file that was indexed (crc32)."
            )
        try:
            found[name] = blob.decode()
        except UnicodeDecodeError:
            return None
        if len(blob) > _MOST:
            return None
    return found


def blobs(row: Mapping[str, object], record: Record) -> dict[str, memoryview] | None:
    """The members' bytes out of a row's JSON; None where the row has not all of them."""
    found = row.get("kept")
    if not isinstance(found, dict) or any(n not in found for n in NAMES if n in record.members):
        return None
    return {name: memoryview(str(text).encode()) for name, text in found.items()}


def digest(lines: Lines) -> str:
    """Of all that is kept of a shard as its index has it now."""
    whole = hashlib.sha256()
    for position in range(len(lines)):
        record = lines.entry(position).record
        facts = {n: [m.size, m.crc32] for n, m in record.members.items() if n in NAMES}
        whole.update(json.dumps([record.key, facts], sort_keys=True).encode())
    return whole.hexdigest()[:16]
