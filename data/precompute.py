"""Encoder outputs of a dataset, shard by shard: a map that can be stopped and goes on.

Each source shard gives one tar of the same name, whole or not at all. Its first member, which
WebDataset skips, holds a hash of everything that the tar depends on, so that a finished shard is
known without encoding anything and a changed one is made again. `cache` reads what is written here.
"""

import hashlib
import io
import json
import math
import re
import shutil
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..config import plain
from ..errors import CrcError, DataError, ShardError
from . import index, storage
from .buckets import Buckets
from .cache import (
    NOTE,
    ROW,
    Dtype,
    Note,
    Spec,
    content,
    read_note,
    require_same,
    used,
    write_note,
)
from .decode import sample
from .index import Entry, Lines, Manifest
from .records import Record
from .transforms import Frame, frame

HEAD = "__diptych__/shard.json"
_HEAD_BYTES = 2048
_BATCH_BYTES = 64 << 20
"""A batch of samples that lies further apart in its shard is cut, so that memory is bounded."""
_FAULTS = 0.1
"""Share of a shard's samples that may be unreadable; more means that the shard itself is wrong."""


class Encoder(Protocol):
    """A frozen model with its weights in memory. B rows."""

    name: str
    digest: str
    """Of weights and settings; equal digests give equal arrays."""

    def encode(
        self, images_BCHW: np.ndarray | None, texts: Sequence[str] | None
    ) -> dict[str, Sequence[np.ndarray]]:
        """Arrays of B rows by name (lower case); rows may differ in length. Images are uint8."""
        ...


@dataclass(frozen=True)
class Done:
    """A shard whose tar is there."""

    shard: str
    samples: int
    faults: int
    """Samples that could not be decoded: they have a row that says why, and no arrays."""
    first: tuple[str, ...]
    """What was wrong with the first few of them."""
    fresh: bool
    """Encoded now; otherwise it was finished before."""


@dataclass(frozen=True)
class _Row:
    key: str
    content: str
    image_CHW: np.ndarray | None = None
    text: str | None = None
    fault: str = ""


def precompute(
    source: Manifest,
    encoder: Encoder,
    spec: Spec,
    out: str,
    *,
    batch: int = 64,
    told: Callable[[Done], None] = lambda done: None,
) -> list[Done]:
    """Encodes a dataset in this process; `cluster.precompute` does the same with many.

    Raises:
        StaleCacheError: `out` holds a cache that was made in another way.
        DataError: `out` holds other tars, or a shard cannot be encoded.
    """
    out = begin(source, spec, out)
    found: list[Done] = []
    for number in range(len(source.shards)):
        found.append(shard(source, number, encoder, spec, out, batch=batch))
        told(found[-1])
    seal(source, spec, out)
    return found


def begin(source: Manifest, spec: Spec, out: str) -> str:
    """Makes ready a cache's folder, or one that a stopped run left; returns its whole URL.

    Raises:
        StaleCacheError: it holds a cache that was made in another way.
        DataError: it holds tars that are no cache's, such as the source's.
    """
    out = storage.absolute(out)
    storage.require_bucket(out)
    note = read_note(out)
    if note:
        require_same(out, note, plain(spec))
    elif any(child.endswith(".tar") for child in storage.children(out)):
        raise DataError(f"{out} holds tars but no {NOTE}: no cache. Choose another --out.")
    if note != Note(spec, source.url, source.digest, complete=True):
        write_note(out, Note(spec, source.url, source.digest, complete=False))
    return out


def seal(source: Manifest, spec: Spec, out: str) -> None:
    """Completes a cache whose every shard is there: the index of its tars, and last its note."""
    tars = [storage.join(out, storage.name(shard.url)) for shard in source.shards]
    index.build(tars, threads=8)
    write_note(out, Note(spec, source.url, source.digest, complete=True))


def shard(
    source: Manifest, number: int, encoder: Encoder, spec: Spec, out: str, *, batch: int = 64
) -> Done:
    """Encodes one shard of a dataset, unless its tar is there and nothing it depends on changed.

    The bytes written depend on the shard, the encoder, the spec and `batch` alone.

    Args:
        source: the dataset.
        number: which of its shards.
        encoder: what `spec` was made of.
        spec: what is kept.
        out: the cache's folder.
        batch: samples encoded together.

    Raises:
        ShardError: too many samples are unreadable, or outputs do not fit the dtype.
        StorageError: the shard cannot be read, or the folder cannot be written.
    """
    _require_encoder(encoder, spec)
    origin = source.shards[number]
    url = storage.join(out, storage.name(origin.url))
    lines = index.open_lines(source, origin)
    whole = _content(spec, lines)
    head = _head(url)
    fresh = head.get("content") != whole
    if fresh:
        with tempfile.TemporaryDirectory(prefix="diptych-cache-") as home:
            path = Path(home) / "shard.tar"
            faults = _write(path, origin.url, lines, encoder, spec, batch)
            head = {"content": whole, "faults": len(faults), "first": _few(faults)}
            _fill(path, head)
            with open(path, "rb") as read, storage.writing(url) as written:
                shutil.copyfileobj(read, written, 8 << 20)
        index.add(url, index.beside(url))
    return Done(storage.name(url), len(lines), head["faults"], tuple(head["first"]), fresh)


def _content(spec: Spec, lines: Lines) -> str:
    """A hash of all that a shard's tar depends on, `batch` aside."""
    whole = hashlib.sha256()
    for position in range(len(lines)):
        record = lines.entry(position).record
        whole.update(json.dumps([record.key, content(spec, record)]).encode())
    return whole.hexdigest()


def _require_encoder(encoder: Encoder, spec: Spec) -> None:
    if encoder.digest != spec.encoder_digest:
        raise DataError(
            f"the encoder {encoder.name} has digest {encoder.digest} here, and "
            f"{spec.encoder_digest} where this began. Give every machine the same weights."
        )


def _write(
    path: Path, url: str, lines: Lines, encoder: Encoder, spec: Spec, batch: int
) -> list[str]:
    """Writes the tar and returns what was wrong with samples that could not be decoded."""
    faults: list[str] = []
    most = max(1, int(_FAULTS * len(lines)))
    with (
        ThreadPoolExecutor(2) as pool,
        tarfile.open(path, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        _add(archive, HEAD, b" " * _HEAD_BYTES)
        parts = _batches(lines, batch)
        for rows in _ahead(pool, lambda part: _read(url, part, spec), parts):
            faults += [row.fault for row in rows if row.fault]
            if len(faults) > most:
                pool.shutdown(cancel_futures=True)
                raise ShardError(
                    f"{url}: {len(faults)} samples or more of {len(lines)} cannot be encoded. "
                    f"The first: {faults[0]} Index the shard again, or mend it."
                )
            _add_rows(archive, rows, encoder, spec, url)
    return faults


def _fill(path: Path, head: dict[str, Any]) -> None:
    """Fills in the first member, whose content is known last: it begins behind one block."""
    with open(path, "r+b") as file:
        file.seek(tarfile.BLOCKSIZE)
        file.write(json.dumps(head).encode())


def _few(faults: Sequence[str]) -> list[str]:
    """The first faults, short enough for the head of a tar even if JSON escapes every letter."""
    return [fault[:100].encode("ascii", "replace").decode() for fault in faults[:3]]


def _batches(lines: Lines, batch: int) -> Iterator[list[Entry]]:
    """Neighbours that are read and encoded together: a pure function of the index."""
    part: list[Entry] = []
    for position in range(len(lines)):
        entry = lines.entry(position)
        start = min(one.record.span()[0] for one in [*part[:1], entry])
        if part and (len(part) == batch or entry.record.span()[1] - start > _BATCH_BYTES):
            yield part
            part = []
        part.append(entry)
    if part:
        yield part


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[list[Entry]], list[_Row]],
    parts: Iterable[list[Entry]],
) -> Iterator[list[_Row]]:
    """Results in order; at most two parts wait, or are worked on, while a third is used."""
    waiting: deque[Future[list[_Row]]] = deque()
    for part in parts:
        waiting.append(pool.submit(work, part))
        if len(waiting) == 2:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(url: str, part: Sequence[Entry], spec: Spec) -> list[_Row]:
    """The rows of neighbouring samples, decoded, from one ranged read."""
    spans = [entry.record.span() for entry in part]
    start, end = min(first for first, _ in spans), max(last for _, last in spans)
    data = storage.read(url, start, end)
    return [_row(url, entry, data, start, spec) for entry in part]


def _row(url: str, entry: Entry, data: bytes, start: int, spec: Spec) -> _Row:
    record = entry.record
    made = content(spec, record)
    try:
        found = _decoded(url, entry, data, start, spec)
        image_CHW = _pixels(found, entry, spec) if spec.sizes else None
        text = _text(found, spec) if spec.text else None
    except (ShardError, ValueError) as err:
        return _Row(record.key, made, fault=str(err).removeprefix(f"{url}: "))
    return _Row(record.key, made, image_CHW, text)


def _decoded(url: str, entry: Entry, data: bytes, start: int, spec: Spec) -> dict[str, Any]:
    fit = _size(entry, spec) if spec.sizes else None
    exact, record = bool(spec.exact), entry.record
    try:
        return sample(record, _cut(record, data, start, spec), shard=url, fit=fit, exact=exact)
    except CrcError:  # damaged on its way, perhaps: one more read will tell
        start, end = record.span()
        data = storage.read(url, start, end)
        return sample(record, _cut(record, data, start, spec), shard=url, fit=fit, exact=exact)


def _cut(record: Record, data: bytes, start: int, spec: Spec) -> dict[str, bytes]:
    return {
        name: data[member.offset - start : member.offset - start + member.size]
        for name, member in used(spec, record).items()
    }


def _size(entry: Entry, spec: Spec) -> tuple[int, int]:
    """(width, height) of a sample's frame: what a plan with such buckets will ask for."""
    table = Buckets(sizes=spec.sizes or (), enlarge=math.inf)
    return table.size(max(0, table.assign(entry.width, entry.height))) or (1, 1)


def _pixels(found: dict[str, Any], entry: Entry, spec: Spec) -> np.ndarray:
    """(3, height, width) uint8, as the loader gives them to a model."""
    if found["image"] is None:
        raise ValueError("it has no image")
    width, height = _size(entry, spec)
    wanted = Frame(width=width, height=height, exact=bool(spec.exact))
    return frame(found["image"], wanted, 0, size=found["size"])[0].numpy()


def _text(found: dict[str, Any], spec: Spec) -> str:
    text = found["text"] if spec.text == "txt" else found["fields"].get(spec.text)
    if not isinstance(text, (str, int, float)):
        raise ValueError(f"it has no text in {spec.text!r}")
    return str(text)


def _add_rows(
    archive: tarfile.TarFile, rows: Sequence[_Row], encoder: Encoder, spec: Spec, url: str
) -> None:
    arrays = _encoded(rows, encoder)
    for row, found in zip(rows, arrays, strict=True):
        told = {"content": row.content, **({"fault": row.fault} if row.fault else {})}
        _add(archive, f"{row.key}.{ROW}", json.dumps(told).encode())
        for name in sorted(found):
            blob = _npy(found[name], spec.dtype, f"{url}: {row.key}.{name}")
            _add(archive, f"{row.key}.{name}.npy", blob)


def _encoded(rows: Sequence[_Row], encoder: Encoder) -> list[dict[str, np.ndarray]]:
    """The arrays of each row, none where it has a fault; images of one size go together."""
    found: list[dict[str, np.ndarray]] = [{} for _ in rows]
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if not row.fault:
            shape = () if row.image_CHW is None else row.image_CHW.shape
            groups.setdefault(shape, []).append(place)
    for places in groups.values():
        images = [image for place in places if (image := rows[place].image_CHW) is not None]
        texts = [text for place in places if (text := rows[place].text) is not None]
        arrays = encoder.encode(np.stack(images) if images else None, texts or None)
        _require_arrays(arrays, len(places), encoder)
        for name, values in arrays.items():
            for place, value in zip(places, values, strict=True):
                found[place][name] = value
    return found


def _require_arrays(arrays: dict[str, Sequence[np.ndarray]], rows: int, encoder: Encoder) -> None:
    for name, found in arrays.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(found) != rows:
            raise DataError(
                f"the encoder {encoder.name} gave {len(found)} rows of {name!r} for {rows} "
                "samples. Names are lower case, and every sample has a row."
            )


def _npy(values: np.ndarray, dtype: Dtype, where: str) -> bytes:
    """The .npy file of an array, fractions in the cache's dtype.

    Raises:
        ShardError: a value is no number, or too large for the dtype.
    """
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # told below, with the sample's name
            values = values.astype(dtype)
        if not np.isfinite(values).all():
            raise ShardError(
                f"{where}: not every value fits {dtype}. Use --dtype float32; if it is that "
                "already, the encoder is broken."
            )
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, blob: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    archive.addfile(info, io.BytesIO(blob))


def _head(url: str) -> dict[str, Any]:
    """What a cache's tar says of itself, nothing where there is no such tar."""
    if not storage.exists(url):
        return {}
    size, _ = storage.stat(url)
    head = storage.read(url, 0, min(size, tarfile.BLOCKSIZE + _HEAD_BYTES))
    try:
        with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
            info = archive.next()
            file = archive.extractfile(info) if info and info.name == HEAD else None
            return json.loads(file.read()) if file else {}
    except (tarfile.TarError, ValueError):
        return {}
