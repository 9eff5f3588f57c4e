"""Encoder outputs of a dataset, shard by shard: a map that can be stopped and goes on.

Each source shard gives one tar of the same name, whole or not at all. Its first member, which
WebDataset skips, holds a hash of everything that the tar depends on, so that a finished shard is
known without encoding anything and a changed one is made again. `cache` reads what is written here.
"""

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..config import plain
from ..errors import DataError, ShardError
from . import index, kept, storage
from .cache import (
    NOTE,
    ROW,
    Dtype,
    Note,
    Spec,
    content,
    read_note,
    require_same,
    write_note,
)
from .index import Lines, Manifest, Shard
from .rows import Row, decoded

HEAD = "__diptych__/shard.json"
_HEAD_BYTES = 2048
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
    made = Note(spec, source.url, source.digest, complete=True)
    if note not in (made, replace(made, kept=True)):
        write_note(out, Note(spec, source.url, source.digest, complete=False))
    return out


def seal(source: Manifest, spec: Spec, out: str) -> None:
    """Completes a cache whose every shard is there: the index of its tars, and last its note."""
    tars = [storage.join(out, storage.name(shard.url)) for shard in source.shards]
    index.build(tars, threads=8)
    keeps = kept.wanted(spec)
    if keeps:
        with ThreadPoolExecutor(8) as pool:
            numbers = range(len(tars))
            keeps = all(pool.map(lambda n: _keeps(source, n, tars[n]), numbers))
    write_note(out, Note(spec, source.url, source.digest, complete=True, kept=keeps))


def _keeps(source: Manifest, number: int, url: str) -> bool:
    """Whether a tar has the texts and records of its shard as they are now."""
    told = _head(url).get("kept")
    return told is not None and told == kept.digest(index.open_lines(source, source.shards[number]))


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
        ShardError: too many samples are unreadable, bytes are not those that were indexed, or
            outputs do not fit the dtype.
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
            faults, keeps = _write(path, origin, lines, encoder, spec, batch)
            head = {"content": whole, "faults": len(faults), "first": _few(faults)}
            head |= {"kept": kept.digest(lines)} if keeps else {}
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
    path: Path, origin: Shard, lines: Lines, encoder: Encoder, spec: Spec, batch: int
) -> tuple[list[str], bool]:
    """Writes the tar; returns what was wrong with samples that could not be decoded, and whether
    the texts and records of all are kept."""
    faults: list[str] = []
    keeps = True
    most = max(1, int(_FAULTS * len(lines)))
    with tarfile.open(path, mode="w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, HEAD, b" " * _HEAD_BYTES)
        for rows in decoded(origin, lines, spec, batch):
            faults += [row.fault for row in rows if row.fault]
            keeps = keeps and all(row.kept is not None for row in rows)
            if len(faults) > most:
                raise ShardError(
                    f"{storage.shown(origin.url)}: {len(faults)} samples or more of {len(lines)} "
                    f"cannot be encoded. The first: {faults[0]} Index the shard again, or mend it."
                )
            _add_rows(archive, rows, encoder, spec, origin.url)
    return faults, keeps


def _fill(path: Path, head: dict[str, Any]) -> None:
    """Fills in the first member, whose content is known last: it begins behind one block."""
    with open(path, "r+b") as file:
        file.seek(tarfile.BLOCKSIZE)
        file.write(json.dumps(head).encode())


def _few(faults: Sequence[str]) -> list[str]:
    """The first faults, short enough for the head of a tar even if JSON escapes every letter."""
    return [fault[:100].encode("ascii", "replace").decode() for fault in faults[:3]]


def _add_rows(
    archive: tarfile.TarFile, rows: Sequence[Row], encoder: Encoder, spec: Spec, url: str
) -> None:
    arrays = _encoded(rows, encoder)
    for row, found in zip(rows, arrays, strict=True):
        told: dict[str, Any] = {"content": row.content}
        told |= {"fault": row.fault} if row.fault else {}
        told |= {"kept": row.kept} if row.kept is not None else {}
        _add(archive, f"{row.key}.{ROW}", json.dumps(told).encode())
        for name in sorted(found):
            blob = _npy(found[name], spec.dtype, f"{storage.shown(url)}: {row.key}.{name}")
            _add(archive, f"{row.key}.{name}.npy", blob)


def _encoded(rows: Sequence[Row], encoder: Encoder) -> list[dict[str, np.ndarray]]:
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
