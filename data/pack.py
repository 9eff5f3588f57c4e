"""Samples into plain WebDataset tars, straight to a bucket or a disk.

A job that dies goes on: `pack/<shard>.json` beside the shards says which inputs made a shard, and
is written after it. What could not be packed is in `skipped.jsonl`, one line an input.
"""

import hashlib
import io
import itertools
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from ..errors import DataError
from . import storage
from .ahead import ahead
from .items import Item, Members, Seen, Unreadable, printable, reads_back

Sample = tuple[str, Members]
"""(key, member bytes by extension)."""

JOURNAL = "pack"
SKIPPED = "skipped.jsonl"
_FAIR = 1000  # inputs before the share of unreadable ones is judged, but for the end


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large shards are, and how many inputs may be left out."""

    samples: int | None = 1000
    """Most samples of a shard."""
    megabytes: float | None = None
    """Most megabytes of a shard; one larger sample is a shard alone."""
    skips: float = 0.05
    """Share of the inputs that may be unreadable before packing stops."""


@dataclass
class Packed:
    """What was packed."""

    urls: list[str] = field(default_factory=list[str])
    kept: int = 0
    """Shards that an earlier, interrupted attempt had finished; the first of `urls`."""
    inputs: int = 0
    samples: int = 0
    skipped: Counter[str] = field(default_factory=Counter[str])
    """How many inputs were left out for which reason."""


def pack(
    samples: Iterable[Sample],
    out: str,
    *,
    per_shard: int = 1000,
    done: Callable[[str, int], None] = lambda url, samples: None,
) -> list[str]:
    """Writes `<out>/00000.tar` and on, whole shards only, and returns their URLs.

    Args:
        samples: what to write, in this order.
        out: a folder without tars, or one that the same samples were being packed into.
        per_shard: samples in a shard.
        done: told of each shard written.

    Raises:
        DataError: no samples at all, a key that would be read back as another, two samples of one
            key, or tars of something else are there already.
    """
    shape = Shape(samples=per_shard, skips=0)
    return pack_items(map(given, samples), out, shape, done=done).urls


def pack_items(
    items: Iterable[Item],
    out: str,
    shape: Shape,
    *,
    change: Callable[[Members], Members] = lambda members: members,
    meaning: dict[str, Any] | None = None,
    threads: int = 4,
    told: Callable[[int], None] = lambda inputs: None,
    heard: Callable[[str, Members], None] = lambda key, members: None,
    done: Callable[[str, int], None] = lambda url, samples: None,
) -> Packed:
    """Writes the inputs of a source as shards; an interrupted attempt goes on where it was.

    Args:
        items: the inputs; the same ones, in the same order, at every attempt.
        out: folder of the shards.
        shape: how large they are.
        change: makes what is written of what was read; raises Unreadable.
        meaning: all that `items` and `change` depend on; another one is refused at a later attempt.
        threads: inputs read and changed at once.
        told: told of the number of inputs that were looked at.
        heard: told of each sample written now.
        done: told of each shard written now.

    Raises:
        DataError: nothing to pack, too many unreadable inputs, a changed source, other options
            than before, or tars of something else.
        StorageError: the folder cannot be written.
    """
    journal = _Journal(storage.absolute(out))
    journal.open({"samples": shape.samples, "megabytes": shape.megabytes, **(meaning or {})})
    packed, inputs = Packed(), _unique(items)
    over = journal.replay(packed, inputs, told)
    packed.kept = len(packed.urls)
    if not over:
        read = ahead(lambda item: _read(item, change), inputs, threads)
        writer = _Writer(journal, shape, packed, read, told)
        while (part := writer.shard(heard)).samples:
            packed.urls.append(journal.url(part.number))
            done(packed.urls[-1], part.samples)
    _require_few(journal, packed, shape)
    journal.list_skips(packed)
    if not packed.urls:
        none = "no samples were found."
        if packed.skipped:
            none = f"none of {packed.inputs} inputs is one. See {storage.join(out, SKIPPED)}."
        raise DataError(f"nothing to pack into {out}: {none}")
    return packed


@dataclass
class _Part:
    """Inputs that made one shard, or the last ones, which made none."""

    number: int
    inputs: int = 0
    samples: int = 0
    bytes: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def note(self, item: Item, fault: Unreadable | None = None) -> None:
        """Counts an input."""
        self.inputs += 1
        self.digest.update(f"{item.name}\0{item.key}\0{item.stamp}\n".encode())
        if fault:
            self.skipped.append((item.name, fault.reason, fault.detail))

    def row(self) -> dict[str, Any]:
        """The part as the journal has it."""
        counts = {"inputs": self.inputs, "samples": self.samples, "bytes": self.bytes}
        return {**counts, "digest": self.digest.hexdigest(), "skipped": self.skipped}


class _Journal:
    """What earlier attempts have finished."""

    def __init__(self, out: str) -> None:
        self.out, self.folder = out, storage.join(out, JOURNAL)
        self._there: set[str] = set()  # names of rows and shards

    def url(self, number: int) -> str:
        return storage.join(self.out, f"{number:05d}.tar")

    def open(self, meaning: dict[str, Any]) -> None:
        """Takes the folder for this source and these options, or finds that it has been."""
        storage.require_bucket(self.out)
        place = storage.join(self.folder, "options.json")
        children = storage.children(self.out)
        if storage.exists(place):
            before = self._row(place)
            for name in {**before, **meaning}:
                if before.get(name) == meaning.get(name):
                    continue
                raise DataError(
                    f"{self.out} was packed with {name} = {before.get(name)}, not "
                    f"{meaning.get(name)}. Choose another folder, or delete this one."
                )
        elif any(child.endswith(".tar") for child in children):
            raise DataError(
                f"{self.out} holds tars already. Choose another folder, or delete them."
            )
        else:
            storage.write(place, json.dumps(meaning).encode())
        for child in children:
            if child.startswith(".") and child.endswith(".part"):  # of an attempt that was killed
                storage.delete(storage.join(self.out, child))
        self._there = {*children, *storage.children(self.folder)}

    def save(self, part: _Part) -> None:
        storage.write(self._place(part.number), json.dumps(part.row()).encode())

    def replay(self, packed: Packed, items: Iterator[Item], told: Callable[[int], None]) -> bool:
        """Takes the inputs of finished shards from `items`; whether that was all of them."""
        while row := self._finished(len(packed.urls)):
            part = _Part(len(packed.urls))
            for item in itertools.islice(items, row["inputs"]):
                part.note(item)
                told(1)
            over = not row["samples"]
            if part.row()["digest"] != row["digest"] or (over and next(items, None)):
                raise DataError(
                    f"{self.out}: the source has changed since {part.number:05d}.tar was packed. "
                    "Choose another folder, or delete this one."
                )
            _count(packed, row)
            if over:
                return True
            packed.urls.append(self.url(part.number))
        return False

    def list_skips(self, packed: Packed, open_part: _Part | None = None) -> None:
        """Writes the list of what was left out, beside the shards."""
        unsaved = open_part.skipped if open_part else []
        if not packed.skipped and not unsaved:
            return
        with storage.writing(storage.join(self.out, SKIPPED)) as file:
            for number in range(len(packed.urls) + 1):
                place = self._place(number)
                if number < len(packed.urls) or (not open_part and storage.exists(place)):
                    _lines(file, self._row(place)["skipped"])
            _lines(file, unsaved)

    def _finished(self, number: int) -> dict[str, Any] | None:
        """A shard's row, if both are there and whole."""
        if storage.name(self._place(number)) not in self._there:
            return None
        row = self._row(self._place(number))
        if not row["samples"]:
            return row
        there = storage.name(self.url(number)) in self._there
        return row if there and storage.stat(self.url(number))[0] == row["bytes"] else None

    def _row(self, place: str) -> dict[str, Any]:
        try:
            row = json.loads(storage.read(place))
        except ValueError as err:
            raise DataError(f"{place} is damaged: {err}. Delete {self.out} and pack anew.") from err
        return row

    def _place(self, number: int) -> str:
        return storage.join(self.folder, f"{number:05d}.json")


class _Writer:
    """Writes shard after shard of what was read."""

    def __init__(
        self,
        journal: _Journal,
        shape: Shape,
        packed: Packed,
        read: Iterator[tuple[Item, Members | Unreadable]],
        told: Callable[[int], None],
    ) -> None:
        self.journal, self.shape, self.packed = journal, shape, packed
        self._read, self._told = read, told
        self._held: tuple[Item, Members] | None = None

    def shard(self, heard: Callable[[str, Members], None]) -> _Part:
        """Writes the next shard and its row; without samples if there are none left."""
        part = _Part(len(self.packed.urls))
        if self._next(part):
            with storage.writing(self.journal.url(part.number)) as file, _archive(file) as archive:
                while (held := self._next(part)) and self._fits(part, held[1]):
                    item, members = held
                    _add(archive, item.key, members)
                    heard(item.key, members)
                    part.note(item)
                    part.samples += 1
                    part.bytes = archive.offset
                    self._held = None
            part.bytes = storage.stat(self.journal.url(part.number))[0]
        self.journal.save(part)
        _count(self.packed, part.row())
        if self.packed.inputs >= _FAIR:
            _require_few(self.journal, self.packed, self.shape)
        return part

    def _next(self, part: _Part) -> tuple[Item, Members] | None:
        """The next sample; what cannot be one is noted on the way."""
        while self._held is None:
            found = next(self._read, None)
            if found is None:
                return None
            self._told(1)
            item, members = found
            if isinstance(members, Unreadable):
                part.note(item, members)
                if len(part.skipped) % _FAIR == 0:
                    _require_few(self.journal, self.packed, self.shape, part)
            else:
                self._held = item, members
        return self._held

    def _fits(self, part: _Part, members: Members) -> bool:
        if part.samples == self.shape.samples:
            return False
        size = part.bytes + 1024 + sum(512 + _up(len(blob), 512) for blob in members.values())
        most = self.shape.megabytes
        return not part.samples or most is None or _up(size, tarfile.RECORDSIZE) <= most * 1e6


def _up(size: int, step: int) -> int:
    """The size rounded up to whole steps, as a tar does with its members and its own end."""
    return -(-size // step) * step


def tar(samples: Iterable[Sample]) -> bytes:
    """The bytes of one shard; the same samples always give the same bytes."""
    buffer = io.BytesIO()
    with _archive(buffer) as archive:
        for key, members in samples:
            _add(archive, key, members)
    return buffer.getvalue()


def scattered(samples: list[Sample], seed: int = 0) -> list[Sample]:
    """The samples in an order in which neighbours have nothing to do with each other."""
    from . import draws  # and torch, which nothing else here needs

    return [samples[place] for place in draws.permutation(len(samples), draws.row_key(seed))]


def _archive(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT)


def _add(archive: tarfile.TarFile, key: str, members: Members) -> None:
    for extension, blob in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")  # of time 0 and owner 0
        info.size = len(blob)
        archive.addfile(info, io.BytesIO(blob))


def given(sample: Sample) -> Item:
    """A sample in memory as an input."""
    key, members = sample
    stamp = " ".join(f"{name}:{zlib.crc32(blob)}" for name, blob in members.items())
    return Item(printable(key), key, key, stamp, lambda: members)


def _unique(items: Iterable[Item]) -> Iterator[Item]:
    """The items; those whose key was there before are unreadable."""
    seen = Seen()

    def refuse() -> Members:
        raise Unreadable("duplicate key", "an earlier input has the same key")

    for item in items:
        yield item if seen.add(item.key) else replace(item, load=refuse)


def _read(item: Item, change: Callable[[Members], Members]) -> Members | Unreadable:
    try:
        members = change(item.load())
    except Unreadable as err:
        return err
    except (OSError, ValueError, RecursionError) as err:
        return Unreadable("cannot be read", str(err))
    for extension in members:
        if not reads_back(item.key, extension):
            raise DataError(
                f"the key {printable(item.key)!r} with the extension {extension!r} would be read "
                "back as another. Use no dot in a key's last part, and lower-case extensions."
            )
    return members


def _count(packed: Packed, row: dict[str, Any]) -> None:
    packed.inputs += row["inputs"]
    packed.samples += row["samples"]
    packed.skipped.update(reason for _, reason, _ in row["skipped"])


def _lines(file: BinaryIO, skipped: Iterable[Sequence[str]]) -> None:
    for name, reason, detail in skipped:
        line = {"input": name, "reason": reason, "detail": detail}
        file.write(json.dumps(line).encode() + b"\n")


def _require_few(
    journal: _Journal, packed: Packed, shape: Shape, part: _Part | None = None
) -> None:
    """Stops when too many inputs were left out, the open part's among them."""
    inputs = packed.inputs + (part.inputs if part else 0)
    reasons = packed.skipped + Counter(reason for _, reason, _ in (part.skipped if part else []))
    if reasons.total() > shape.skips * inputs:
        journal.list_skips(packed, part)
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(
            f"{reasons.total()} of {inputs} inputs cannot be packed ({counts}), more than "
            f"{shape.skips:.1%}. They are listed in {storage.join(journal.out, SKIPPED)}; mend "
            "them, or allow more with --max-skipped."
        )
