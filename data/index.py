"""The index of a dataset: what lies where in plain tars, written beside them.

`index/manifest.json` names the shards, with sizes, counts and one digest of the whole; opening a
dataset reads nothing else. `index/<shard>.jsonl.gz` has one line a sample and is read when that
shard is first touched; a line is parsed when its sample is. JSON only.
"""

import functools
import gzip
import hashlib
import json
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pydantic_core

from ..errors import ShardError, StaleIndexError, StorageError
from . import storage
from .decode import is_image
from .decode import size as image_size
from .records import Member, Record, scan

FORMAT = 2
FOLDER = "index"


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of a dataset."""

    url: str
    bytes: int
    etag: str
    samples: int
    lines: str
    """SHA-256 of the shard's index lines."""


@dataclass(frozen=True)
class Manifest:
    """A dataset as its index describes it."""

    url: str
    """The folder of the index."""
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes in all shards."""
        return sum(shard.bytes for shard in self.shards)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that change when any sample of any shard does; places do not count."""
        lines = [f"{shard.samples} {shard.lines}" for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def lines_url(self, shard: Shard) -> str:
        """Where the index lines of a shard lie."""
        return _lines_url(shard.url, self.url)


class Entry(NamedTuple):
    """One line of a shard's index."""

    record: Record
    width: int | None
    """Pixels, from the image's header; None without an image."""
    height: int | None
    text_chars: int
    """Length of the .txt member."""


def build(
    urls: Sequence[str],
    out: str | None = None,
    *,
    threads: int = 4,
    done: Callable[[Shard], None] = lambda shard: None,
) -> Manifest:
    """Reads every shard once and writes the index; the manifest comes last.

    Shards whose index is already there, with the same size and etag, are not read again.

    Args:
        urls: the tars; brace ranges and globs are meant to be expanded before.
        out: folder of the index; `index/` beside the first shard by default.
        threads: shards read at once.
        done: told of each finished shard.

    Raises:
        ShardError: a shard is unreadable, or two shards have one name.
        StorageError: a shard is missing, or the folder cannot be written, as on a web server.
    """
    urls = [storage.absolute(url) for url in urls]
    names = [storage.name(url) for url in urls]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ShardError(
            f"two shards are called {twice[0]!r}; the ledger could not tell them apart."
        )
    out = storage.absolute(out) if out else beside(urls[0])
    if out.startswith("https://"):
        raise StorageError(f"{out}: nothing is written to a web server. Give --out FOLDER.")
    known = {shard.url: shard for shard in _partial(out, names)}

    def one(url: str) -> Shard:
        size, etag = storage.stat(url)
        old = known.get(url)
        same = old is not None and (old.bytes, old.etag) == (size, etag) and _sound(old, out)
        shard = old if old and same else _index(url, out)
        done(shard)
        return shard

    with ThreadPoolExecutor(threads) as pool:
        shards = tuple(pool.map(one, urls))
    manifest = Manifest(out, shards)
    storage.write(storage.join(out, "manifest.json"), _dump(manifest))
    return manifest


def add(url: str, out: str) -> Shard:
    """Indexes one shard ahead of `build`, which then need not read it."""
    return _index(storage.absolute(url), storage.absolute(out))


def beside(url: str) -> str:
    """Where the index of a shard lies by default."""
    return storage.join(storage.parent(url), FOLDER)


def open_manifest(url: str) -> Manifest:
    """The index of a dataset folder (or of the index folder itself).

    Raises:
        StaleIndexError: nothing is indexed there, or the manifest is not one of ours.
    """
    url = storage.absolute(url)
    storage.require_bucket(url)
    for folder in (url, beside(url) if url.lower().endswith(".tar") else storage.join(url, FOLDER)):
        place = storage.join(folder, "manifest.json")
        if storage.exists(place):
            try:
                return _load(storage.read(place), folder)
            except StaleIndexError:  # damaged on its way, perhaps: one more read will tell
                return _load(storage.read(place), folder)
    raise StaleIndexError(
        f"{url} has no index. Make one: diptych data index '{url}'. Or pack pictures first: "
        "diptych data pack."
    )


def known(out: str) -> tuple[Shard, ...]:
    """The shards that an index names so far; none where there is no sound one."""
    place = storage.join(storage.absolute(out), "manifest.json")
    try:
        return _load(storage.read(place), storage.parent(place)).shards
    except (StorageError, StaleIndexError):
        return ()


class Lines:
    """The index lines of one shard, parsed one by one as they are asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        self._starts = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def nbytes(self) -> int:
        """Memory that the lines take."""
        return len(self._data) + self._starts.nbytes

    def entry(self, position: int) -> Entry:
        """The sample at a place of the shard."""
        return _entry(self._line(position))

    def shapes(self, first: int, last: int) -> np.ndarray:
        """(3, N) int64 of the samples [first, last): image width, height, characters of text."""
        rows = [pydantic_core.from_json(self._line(position)) for position in range(first, last)]
        found = [(row.get("width", 0), row.get("height", 0), row["text"]) for row in rows]
        return np.array(found, dtype=np.int64).reshape(-1, 3).T

    def _line(self, position: int) -> bytes:
        return self._data[self._starts[position] : self._starts[position + 1]]

    def entries(self, first: int, last: int) -> list[Entry]:
        """The samples [first, last)."""
        return [self.entry(position) for position in range(first, last)]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The byte range of the shard that holds the samples [first, last)."""
        # Samples lie one behind the other, so the outermost two say it.
        return self.entry(first).record.span()[0], self.entry(last - 1).record.span()[1]


def open_lines(manifest: Manifest, shard: Shard) -> Lines:
    """The index lines of a shard.

    Raises:
        StaleIndexError: the lines are not those that the manifest names.
    """
    url = manifest.lines_url(shard)
    for _ in range(2):  # damaged on their way, perhaps: one more read will tell
        data = _unpacked(storage.read(url))
        if hashlib.sha256(data).hexdigest() == shard.lines:
            return Lines(data)
    raise StaleIndexError(f"{url} is not what its manifest names. Index the shards again.")


class LineCache:
    """Index lines of the shards in use; a shard's are read when it is first touched.

    Args:
        manifest: the dataset.
        limit: bytes of lines to keep; the oldest shard's go first.
    """

    def __init__(self, manifest: Manifest, limit: int = 64 << 20) -> None:
        self.manifest, self.limit = manifest, limit
        self._lock = threading.Lock()
        self._found: dict[int, Lines] = {}

    def of(self, shard: int) -> Lines:
        """The lines of a shard."""
        with self._lock:
            if shard in self._found:
                self._found[shard] = self._found.pop(shard)  # the newest again
                return self._found[shard]
        lines = open_lines(self.manifest, self.manifest.shards[shard])
        with self._lock:
            self._found[shard] = lines
            while len(self._found) > 1 and sum(x.nbytes for x in self._found.values()) > self.limit:
                del self._found[next(iter(self._found))]
        return lines


def entries(manifest: Manifest, shard: Shard) -> list[Entry]:
    """The samples of a shard, in the order they lie in it; raises as `open_lines` does."""
    return open_lines(manifest, shard).entries(0, shard.samples)


def _unpacked(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return b""  # not what was written: the digest will say so


def _lines_url(url: str, out: str) -> str:
    return storage.join(out, storage.name(url) + ".jsonl.gz")


def _sound(shard: Shard, out: str) -> bool:
    """Whether the lines of a shard are still those that were written."""
    try:
        data = _unpacked(storage.read(_lines_url(shard.url, out)))
    except StorageError:
        return False
    return hashlib.sha256(data).hexdigest() == shard.lines


def _index(url: str, out: str) -> Shard:
    size, etag = storage.stat(url)
    with storage.open_read(url) as file, storage.explained(url):
        lines = [_line(record, blobs) for record, blobs in scan(file, shard=url, held=_measured)]
    if not lines:
        raise ShardError(
            f"{storage.shown(url)} holds no samples. Leave it out, or upload it again."
        )
    data = "".join(lines).encode()
    digest = hashlib.sha256(data).hexdigest()
    storage.write(_lines_url(url, out), gzip.compress(data, 6, mtime=0))
    shard = Shard(url=url, bytes=size, etag=etag, samples=len(lines), lines=digest)
    storage.write(
        storage.join(out, storage.name(url) + ".json"), json.dumps(_row(shard, out)).encode()
    )
    return shard


def _measured(extension: str) -> bool:
    return is_image(extension) or extension == "txt"


def _line(record: Record, blobs: dict[str, bytes]) -> str:
    # An unreadable image has no size here; `data check` counts it and training names it.
    size = next((image_size(blob) for ext, blob in blobs.items() if is_image(ext)), None)
    row: dict[str, Any] = {
        "key": record.key,
        "members": {e: [m.offset, m.size, m.crc32] for e, m in record.members.items()},
        "text": len(blobs.get("txt", b"").decode(errors="replace")),
    }
    if size:
        row |= {"width": size[0], "height": size[1]}
    return json.dumps(row) + "\n"


def _entry(line: bytes) -> Entry:
    row = pydantic_core.from_json(line)
    members = {ext: Member._make(place) for ext, place in row["members"].items()}
    return Entry(Record(row["key"], members), row.get("width"), row.get("height"), row["text"])


def _row(shard: Shard, out: str) -> dict[str, Any]:
    """A shard beside its index is written by a relative name, so that the two can move together."""
    row = {name: getattr(shard, name) for name in Shard.__slots__}
    if storage.parent(shard.url) == storage.parent(out):
        row["url"] = "../" + storage.name(shard.url)
    return row


def _shard(row: dict[str, Any], out: str) -> Shard:
    shard = Shard(**row)
    if shard.url.startswith("../"):
        return replace(shard, url=storage.join(storage.parent(out), shard.url.removeprefix("../")))
    return shard


def _dump(manifest: Manifest) -> bytes:
    rows = [_row(shard, manifest.url) for shard in manifest.shards]
    body = {"format": FORMAT, "digest": manifest.digest, "samples": manifest.samples}
    return json.dumps({**body, "shards": rows}, indent=1).encode()


def _load(data: bytes, folder: str) -> Manifest:
    try:
        body = json.loads(data)
        manifest = Manifest(folder, tuple(_shard(row, folder) for row in body["shards"]))
        sound = body["format"] == FORMAT and body["digest"] == manifest.digest
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise StaleIndexError(f"{folder}/manifest.json is no index: {err}. Index again.") from err
    if not sound:
        raise StaleIndexError(f"{folder}/manifest.json is of another format, or damaged.")
    return manifest


def _partial(out: str, names: list[str]) -> Iterator[Shard]:
    """Those of the shards that an earlier, perhaps interrupted, run has finished."""
    rows = {f"{name}.json" for name in names}
    for child in storage.children(out):
        if child in rows:
            try:
                yield _shard(json.loads(storage.read(storage.join(out, child))), out)
            except (ValueError, TypeError, AttributeError, StorageError):
                continue  # half-written by someone else: that shard is simply read again
