"""A tar shard as WebDataset reads it: consecutive members with one key make one sample."""

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..errors import ShardError
from .urls import shown

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"^__[^/]*__($|/)")
_RESERVED = ("__key__", "__url__")
_CHUNK = 8 << 20
_DAMAGE = (
    *(tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError),
    RecursionError,  # a long name of a long name of a long name ...
)
_PADDING = 10_240
"""Tars are filled up with zeros to a multiple of this, ..."""
_OTHER_PADDING = [1 << power for power in range(14, 21)]
"""... or of a power of two up to 1 MiB, where somebody asked for it (`tar -b`)."""

_OTHERS = {
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"PK\x03\x04": "a zip archive",
}
"""What is taken for a tar, by its first bytes."""


class Member(NamedTuple):
    """Where one file of a sample lies in its shard."""

    offset: int
    """First byte of the data in the shard."""
    size: int
    """Bytes."""
    crc32: int


class Record(NamedTuple):
    """One sample of a shard: its key and its members by extension."""

    key: str
    members: dict[str, Member]

    def span(self) -> tuple[int, int]:
        """The byte range [start, end) of the shard that holds all members."""
        offsets = [(member.offset, member.offset + member.size) for member in self.members.values()]
        return min(start for start, _ in offsets), max(end for _, end in offsets)


def split_name(path: str) -> tuple[str, str] | None:
    """(key, extension) as WebDataset splits a member's name, None if it has none."""
    match = _NAME.match(path)
    return (match[1], match[2].lower()) if match else None


def scan(
    file: Any, *, shard: str, held: Callable[[str], bool] = lambda extension: True
) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """Yields every sample of a tar with its members' bytes, and reads each byte once.

    A damaged tar yields what lies before the damage, the last sample perhaps without all its
    members, and then raises.

    Args:
        file: the tar.
        shard: named in errors.
        held: by extension, whose bytes are wanted; others are not kept, however large they are.

    Raises:
        ShardError: no tar, cut short, a damaged header, or two members of one name in a sample.
    """
    shard = shown(shard)
    key: str | None = None
    members: dict[str, Member] = {}
    blobs: dict[str, bytes] = {}
    fault: ShardError | None = None
    try:
        for info in _files(file, shard):
            parts = split_name(info.name)
            if parts is None or _META.match(info.name):
                continue
            if parts[0] != key:
                if key is not None and members:
                    yield Record(key, members), blobs
                key, members, blobs = parts[0], {}, {}
            if parts[1] in members:
                raise ShardError(f"{shard}: sample {key!r} has two members .{parts[1]}. Repack it.")
            if parts[1] in _RESERVED:
                raise ShardError(
                    f"{shard}: {info.name!r}: .{parts[1]} is WebDataset's own. Rename it."
                )
            _require_whole(file, info, shard)
            if held(parts[1]):
                blobs[parts[1]] = file.read(info.size)
                crc = zlib.crc32(blobs[parts[1]])
            else:
                crc = _crc(file, info.size)
            members[parts[1]] = Member(info.offset_data, info.size, crc)
    except ShardError as err:
        fault = err
    if key is not None and members:
        yield Record(key, members), blobs
    if fault:
        raise fault


def _files(file: Any, shard: str) -> Iterator[tarfile.TarInfo]:
    try:
        # A name that is not UTF-8 must still be one that can be printed and written.
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as tar:
            for info in tar:
                vars(tar)["members"] = []  # or it would remember a giant's every member
                if info.size < 0:  # which would lead back to where we were, for ever
                    raise tarfile.ReadError(f"member {info.name!r} of {info.size} bytes")
                if info.isreg():
                    yield info
            end = tar.offset
    except _DAMAGE as err:
        raise ShardError(f"{shard} is not a readable tar: {_why(file, err)}.") from err
    _require_end(file, end, shard)


def _why(file: Any, err: Exception) -> str:
    file.seek(0)
    begins = file.read(6)
    for mark, kind in _OTHERS.items():
        if begins.startswith(mark):
            return f"it is {kind}. Samples are read by their place in a plain tar: unpack it first"
    return f"{err}. Upload it again"


def _require_whole(file: Any, info: tarfile.TarInfo, shard: str) -> None:
    """Goes to the first byte of a member that is there to its last."""
    if info.issparse():
        raise ShardError(f"{shard}: member {info.name!r} is sparse. Pack it without --sparse.")
    there = file.seek(0, 2) - info.offset_data
    if not 0 <= info.size <= there:
        raise ShardError(
            f"{shard}: cut short in member {info.name!r}: {there} of {info.size} bytes. "
            "Upload it again."
        )
    file.seek(info.offset_data)


def _crc(file: Any, size: int) -> int:
    found = 0
    for start in range(0, size, _CHUNK):
        found = zlib.crc32(file.read(min(_CHUNK, size - start)), found)
    return found


def _follows(file: Any, end: int) -> str:
    file.seek(end)
    if any(file.read(512)):  # the mark is all zeros, a damaged header is not
        return (
            f"damaged header near byte {end}; the rest of the shard is unreadable. Upload it again."
        )
    return (
        f"something follows the end-of-archive mark at byte {end}, which readers of tars do not "
        "see. Were tars joined by cat? Repack it, or cut the rest off."
    )


def _require_end(file: Any, end: int, shard: str) -> None:
    """A tar ends in zeros; tarfile takes a damaged header for the end and says nothing."""
    size = file.seek(0, 2)
    if size - end < 512:
        raise ShardError(
            f"{shard}: no end-of-archive mark at byte {end}; it was cut short. Upload it again."
        )
    file.seek(end)
    while tail := file.read(_CHUNK):
        if tail.strip(b"\0"):
            raise ShardError(f"{shard}: {_follows(file, end)}")
    # A download that was never finished, into space reserved for it, ends in zeros too: in more.
    zeros = size - end - 1024
    steps = [step for step in _OTHER_PADDING if size % _PADDING and size % step == 0]
    if zeros >= max([_PADDING, *steps]):
        raise ShardError(
            f"{shard}: {size - end:,} zeros at the end are more than tar writers pad with; the "
            "samples there seem to be lost. Upload it again, or repack it if nothing is missing."
        )
