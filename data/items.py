"""What a source hands to `pack`: inputs that are named but not yet read, and how they are keyed."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..errors import DataError
from .records import split_name

Members = dict[str, bytes]
"""The files of a sample by extension. A source calls its picture `image`; `pictures.ready` gives
it the extension of the format that it really has."""


class Unreadable(DataError):
    """One input cannot be packed; it is listed with its reason and the others go on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a source."""

    name: str
    """What its owner calls it: a path, or a table and a row."""
    key: str
    """The sample's key, the same whatever else the source holds."""
    group: str
    """What it shows; inputs of one group never land on both sides of a split."""
    stamp: str
    """Changes when the input does."""
    load: Callable[[], Members]
    """Reads it. Raises Unreadable or OSError."""


@dataclass
class Notes:
    """What a source left out on purpose; neither samples nor faults."""

    ignored: Counter[str] = field(default_factory=Counter[str])
    """Files that are no pictures and belong to none, by suffix; annotations of a kind that no
    record has."""
    columns: set[str] = field(default_factory=set[str])
    """Columns of bytes that no JSON record can hold."""


class Source(Protocol):
    """A place with inputs; every iteration gives the same ones in the same order."""

    notes: Notes

    def __iter__(self) -> Iterator[Item]: ...


def key_of(name: str, *row: str) -> str:
    """A key that WebDataset splits where we do: `sub/photo` stays, `v1.2` becomes `v1_2-<hash>`.

    Whatever is no letter, digit, `_`, `-` or `/` becomes `_`, dots above all: a reader cuts a
    member's name at the first one. A changed name gets 8 hex digits of a hash of the original, so
    that different names keep different keys.

    Args:
        name: the input's path without its extension, or its id.
        row: what tells inputs of one name apart, such as the row of a table; it joins the hash.
    """
    key = re.sub(r"[^\w/-]", "_", name)
    key = "/".join(part for part in key.split("/") if part)
    if not reads_back(key, "jpg") or len(key) > 200:
        key = f"k{key[:200]}"
    if key == name and not row:
        return key
    return f"{key}-{_hash(name, *row, size=4).hex()}"


def reads_back(key: str, extension: str) -> bool:
    """Whether a member of this key and extension is read back as just that."""
    split = split_name(f"{key}.{extension}") == (key, extension)
    meta = re.match("__[^/]*__/", key)  # WebDataset skips a folder of such a name
    return split and not meta and "\0" not in key and printable(key) == key


def validates(group: str, fraction: float) -> bool:
    """Whether a group belongs to the validation part: a hash decides, so nothing moves it."""
    return int.from_bytes(_hash("validation", group)) < fraction * 2.0**64


class Seen:
    """The keys so far, 8 bytes each: 100 million take 0.8 GB."""

    def __init__(self, batch: int = 1 << 20) -> None:
        self.batch = batch
        self._new: set[int] = set()
        self._old = np.empty(0, np.uint64)

    def add(self, key: str) -> bool:
        """Remembers a key; False if it was there."""
        mark = int.from_bytes(_hash(key))
        place = int(np.searchsorted(self._old, np.uint64(mark)))
        if mark in self._new or (place < len(self._old) and int(self._old[place]) == mark):
            return False
        self._new.add(mark)
        if len(self._new) >= self.batch:
            fresh = np.fromiter(self._new, np.uint64, len(self._new))
            self._old = np.sort(np.concatenate([self._old, fresh]), kind="stable")
            self._new.clear()
        return True


def printable(name: str) -> str:
    """A name that can be written as UTF-8: bytes that are none are shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _hash(*parts: str, size: int = 8) -> bytes:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=size).digest()
