"""A cache of encoder outputs: what its rows depend on, and how they are joined to samples.

A cache is a folder of plain tars, one beside each source shard's name, with `<key>.<name>.npy` for
each array and `<key>.json` with the row's content hash, and a `cache.json` that says what was
encoded, how, from which dataset. Rows are found by key and proven by hash, never by position.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from isal import isal_zlib
from pydantic import field_validator

from ..config import Record as Settings
from ..config import digest, parse, plain
from ..errors import RecipeError, ShardError, StaleCacheError
from . import storage
from .buckets import Buckets
from .decode import array, is_image
from .index import Lines, Manifest, open_lines, open_manifest
from .records import Member, Record

FORMAT = 1
"""To be raised when the same sample and encoder would give another row: another resize, say."""
NOTE = "cache.json"
ROW = "json"
Side = Literal["image", "text", "record"]
"""`record` is the whole JSON record, as annotations are read."""
Dtype = Literal["float16", "float32"]


class Spec(Settings):
    """What a cache holds of each sample, and how it was made."""

    encoder: str
    """The encoder's kind."""
    encoder_digest: str
    """Of its weights and settings."""
    reads: tuple[Side, ...]
    """What of a sample the encoder sees."""
    dtype: Dtype = "float16"
    """Of the arrays of fractions; whole numbers are kept as they are."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """(width, height) in pixels of the frames that images are resized to cover and cut to, at the
    middle; of several, a sample takes the one that `buckets` says. None without images."""
    exact: bool | None = None
    """Whether JPEGs are decoded in full; None without images."""
    text: str | None = None
    """`txt`, or the name of a field of the JSON record; None without texts."""
    whole: bool | None = None
    """True where images are resized to cover their frame and not cut, so that a loader can cut
    each row as it cuts the picture. None where they are cut, or without images."""

    @field_validator("sizes")
    @classmethod
    def _sound(
        cls, sizes: tuple[tuple[int, int], ...] | None
    ) -> tuple[tuple[int, int], ...] | None:
        return sizes if sizes is None else Buckets(sizes=sizes).sizes


@dataclass(frozen=True)
class Note:
    """`cache.json`: what a cache is."""

    spec: Spec
    source: str
    """The folder of the dataset's index."""
    source_digest: str
    complete: bool
    """Whether every shard of the dataset has its tar."""
    kept: bool = False
    """Whether its rows have the samples' texts and records too, as they are now."""


def used(spec: Spec, record: Record) -> dict[str, Member]:
    """The members of a sample that its row depends on."""
    image = next((ext for ext in record.members if is_image(ext)), None)
    text = "txt" if spec.text == "txt" else "json"
    wanted = {"image": image, "text": text, "record": "json"}
    names = [wanted[side] for side in spec.reads]
    return {name: record.members[name] for name in names if name and name in record.members}


def content(spec: Spec, record: Record) -> str:
    """16 hex digits of all that a row depends on: the bytes read, the encoder, dtype and crop.

    A setting that is None does not count, so that a new kind of setting leaves old caches valid.
    """
    facts = {name: value for name, value in plain(spec).items() if value is not None}
    members = [[member.size, member.crc32] for member in used(spec, record).values()]
    return digest({"format": FORMAT, "spec": facts, "members": members})


class Cache:
    """The rows of a finished cache; `open_cache` makes one. Safe to use from several threads."""

    def __init__(self, url: str, note: Note, manifest: Manifest, keep: int = 16) -> None:
        self.url, self.note, self.spec, self.manifest = url, note, note.spec, manifest
        self.keep = keep
        """Shards whose index lines stay in memory."""
        self._shards = {storage.name(shard.url): shard for shard in manifest.shards}
        self._lock = threading.Lock()
        self._places: dict[str, Places] = {}

    def of(self, shard: str, record: Record) -> dict[str, np.ndarray]:
        """The arrays of one sample; `hold` reads neighbours at once.

        Raises:
            ShardError: see `Held.of`.
        """
        return self.hold(shard, [record]).of(record)

    def hold(self, shard: str, records: Sequence[Record]) -> "Held":
        """Reads the rows of neighbouring samples of a source shard in one range.

        Args:
            shard: name of the source shard, such as 00000.tar.
            records: samples of it, as its index has them.

        Raises:
            ShardError: the cache has no such shard, or lacks one of the samples.
            StorageError: the range could not be read.
        """
        places = self._of_shard(shard)
        found = {record.key: places.of(record.key) for record in records}
        lost = [key for key, rows in found.items() if not rows]
        if lost:
            raise ShardError(f"{self.url}/{shard} has no row of {lost[0]!r}. {self._again()}")
        spans = [row.span() for rows in found.values() for row in rows]
        if not spans:
            return Held(self, shard, 0, b"", {})
        start, end = min(first for first, _ in spans), max(last for _, last in spans)
        tar = self._shards[shard]
        etag = None if storage.is_local(tar.url) else tar.etag  # copying a file changes its own
        return Held(self, shard, start, storage.read(tar.url, start, end, etag=etag), found)

    def _of_shard(self, shard: str) -> "Places":
        if shard not in self._shards:
            raise ShardError(f"{self.url} has no shard {shard}. {self._again()}")
        with self._lock:
            if shard not in self._places:
                while len(self._places) >= self.keep:
                    del self._places[next(iter(self._places))]
                self._places[shard] = Places(open_lines(self.manifest, self._shards[shard]))
            return self._places[shard]

    @property
    def command(self) -> str:
        """What makes it, or completes it."""
        return command(self.note.source, self.spec, self.url)

    def _again(self) -> str:
        return f"Complete it: {self.command}"


class Places:
    """Where the rows of one shard of a cache lie, by key."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._by_key: dict[str, list[int]] = {}
        for position in range(len(lines)):
            self._by_key.setdefault(lines.entry(position).record.key, []).append(position)

    def of(self, key: str) -> list[Record]:
        """The rows of a key: one, unless the source shard holds the key twice."""
        return [self._lines.entry(place).record for place in self._by_key.get(key, [])]


@dataclass(frozen=True)
class Held:
    """Rows of one shard in memory, to be taken out by sample."""

    cache: Cache
    shard: str
    start: int
    data: bytes = field(repr=False)
    rows: dict[str, list[Record]] = field(repr=False)

    def of(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of a sample by name.

        Raises:
            ShardError: no row has the sample's key and content, its bytes are damaged, or it could
                not be encoded.
        """
        where = f"{self.cache.url}/{self.shard}: {record.key}"
        wanted, found = content(self.cache.spec, record), list[str]()
        for row in self.rows[record.key]:
            said = json.loads(self._blob(row, ROW, where))
            found.append(said["content"])
            if said["content"] == wanted:
                if "fault" in said:
                    raise ShardError(f"{where} could not be encoded: {said['fault']}")
                return self._arrays(row, where)
        raise ShardError(
            f"{where} was made of other bytes (content {', '.join(found)}, the sample's is "
            f"{wanted}): its shard changed. {self.cache._again()}"
        )

    def _arrays(self, row: Record, where: str) -> dict[str, np.ndarray]:
        try:
            return {
                name.removesuffix(".npy"): array(self._blob(row, name, where))
                for name in row.members
                if name.endswith(".npy")
            }
        except ValueError as err:
            raise ShardError(f"{where}: {err}. {self.cache._again()}") from err

    def _blob(self, row: Record, name: str, where: str) -> bytes:
        member = row.members[name]
        first = member.offset - self.start
        blob = self.data[first : first + member.size]
        if isal_zlib.crc32(blob) != member.crc32:
            raise ShardError(
                f"{where}.{name} is damaged (crc32). Delete that tar and make it again."
            )
        return blob


def open_cache(url: str, source: Manifest, **expect: Any) -> Cache:
    """The cache at a URL, if it is what is expected of this dataset.

    Args:
        url: its folder.
        source: the dataset whose samples will be looked up.
        expect: fields of `Spec`, such as `encoder="taef2", dtype="float16"`; `**plain(spec)` for
            all of them.

    Raises:
        StaleCacheError: of another encoder, crop, dtype or dataset, or unfinished.
        RecipeError: `expect` names what no cache has.
    """
    url = storage.absolute(url)
    note = read_note(url)
    if note is None:
        raise StaleCacheError(
            f"{url} is no cache: it has no {NOTE}. "
            f"Make one: diptych data precompute {_folder(source.url)} --encoder … --out {url}"
        )
    require_same(url, note, expect)
    if note.source_digest != source.digest:
        raise StaleCacheError(
            f"{url} is stale: it was made of {_folder(note.source)} (digest {note.source_digest}), "
            f"and {_folder(source.url)} has digest {source.digest}. What changed is made again by: "
            f"{command(source.url, note.spec, url)}"
        )
    if not note.complete:
        raise StaleCacheError(
            f"{url} is not finished. Go on: {command(source.url, note.spec, url)}"
        )
    return Cache(url, note, open_manifest(url))


def require_same(url: str, note: Note, expect: Mapping[str, Any]) -> None:
    """Refuses a cache that was made in another way.

    Raises:
        StaleCacheError: with what it is, what was expected, and the command that makes it.
    """
    has = plain(note.spec)
    spec = parse(Spec, {**has, **expect}, source=f"what is asked of the cache {url}")
    wrong = [name for name, value in plain(spec).items() if value != has[name]]
    if wrong:
        made = ", ".join(f"{name} {has[name]}" for name in wrong)
        asked = ", ".join(f"{name} {plain(spec)[name]}" for name in wrong)
        raise StaleCacheError(
            f"{url} is stale: it was made with {made}, and {asked} is asked for. "
            f"Make another: {command(note.source, spec, url + '-new')}"
        )


def command(source: str, spec: Spec, url: str) -> str:
    """The command that makes or completes a cache."""
    encoder = spec.encoder if spec.whole else f"{spec.encoder}=WEIGHTS"  # a hint has none
    words = [f"diptych data precompute {_folder(source)} --encoder {encoder}"]
    words += [f"--size {width}x{height}" for width, height in spec.sizes or ()]
    words += ["--exact"] if spec.exact else []
    words += [f"--text {spec.text}"] if spec.text not in (None, "txt") else []
    return " ".join([*words, f"--dtype {spec.dtype} --out {url}"])


def read_note(url: str) -> Note | None:
    """What the cache at a URL says of itself, None where there is none.

    Raises:
        StaleCacheError: it is of another format, or damaged.
    """
    place = storage.join(url, NOTE)
    if not storage.exists(place):
        return None
    try:
        body = json.loads(storage.read(place))
        if body["format"] != FORMAT:
            raise ValueError(f"it has format {body['format']}, this version writes {FORMAT}")
        spec = parse(Spec, body["spec"], source=place)
        kept = bool(body.get("kept"))
        return Note(spec, body["source"], body["source_digest"], body["complete"], kept)
    except (ValueError, KeyError, TypeError, RecipeError) as err:
        raise StaleCacheError(
            f"{place} cannot be used: {err}. Choose another folder and make the cache again."
        ) from err


def write_note(url: str, note: Note) -> None:
    """Writes `cache.json`."""
    body = {name: getattr(note, name) for name in ("source", "source_digest", "complete", "kept")}
    body = {"format": FORMAT, "spec": plain(note.spec), **body}
    storage.write(storage.join(url, NOTE), json.dumps(body, indent=1).encode())


def _folder(index: str) -> str:
    return index.removesuffix("/index")
