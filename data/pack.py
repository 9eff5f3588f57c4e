"""Samples into plain WebDataset tars, straight to a bucket or a disk."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from . import draws, storage
from .decode import is_image

Sample = tuple[str, dict[str, bytes]]
"""(key, member bytes by extension)."""


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
        out: a folder without tars.
        per_shard: samples in a shard.
        done: told of each shard written.

    Raises:
        DataError: no samples at all, or tars are there already.
    """
    if any(child.endswith(".tar") for child in storage.children(out)):
        raise DataError(f"{out} holds tars already. Choose another folder, or delete them.")
    urls: list[str] = []
    waiting: list[Sample] = []

    def flush() -> None:
        url = storage.join(storage.absolute(out), f"{len(urls):05d}.tar")
        storage.write(url, tar(waiting))
        done(url, len(waiting))
        urls.append(url)
        waiting.clear()

    for one in samples:
        waiting.append(one)
        if len(waiting) == per_shard:
            flush()
    if waiting:
        flush()
    if not urls:
        raise DataError("nothing to pack: no samples were found.")
    return urls


def tar(samples: Iterable[Sample]) -> bytes:
    """The bytes of one shard; the same samples always give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for key, members in samples:
            for extension, blob in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(blob)
                archive.addfile(info, io.BytesIO(blob))
    return buffer.getvalue()


def scattered(samples: list[Sample], seed: int = 0) -> list[Sample]:
    """The samples in an order in which neighbours have nothing to do with each other."""
    return [samples[place] for place in draws.permutation(len(samples), draws.row_key(seed))]


def folder(path: Path) -> Iterator[Sample]:
    """Every image below a folder, with its caption.

    The caption is `<image>.txt` beside it, or the row of `metadata.jsonl` or `metadata.csv` whose
    `file_name` names it: `text` or `caption` becomes the .txt member, the rest the .json member.

    Raises:
        DataError: no folder, an unreadable metadata file, or a row without its image.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.")
    rows = _metadata(path)
    images = sorted(f for f in path.rglob("*") if f.is_file() and is_image(f.suffix[1:].lower()))
    names = {str(image.relative_to(path)) for image in images}
    lost = sorted(set(rows) - names)
    if lost:
        raise DataError(f"{path}: metadata names {lost[0]!r}, which is not there ({len(lost)} so).")
    for number, image in enumerate(images):
        name = str(image.relative_to(path))
        row = dict(rows.get(name, {}))
        members = {image.suffix[1:].lower(): image.read_bytes()}
        caption = str(row.pop("text" if "text" in row else "caption", "") or "")
        beside = image.with_suffix(".txt")
        if not caption and beside.exists():
            caption = _text(beside)
        if caption:
            members["txt"] = caption.strip().encode()
        if row:
            members["json"] = json.dumps(row).encode()
        yield f"{number:09d}", members


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise DataError(f"{path} is not UTF-8 text: {err}. Save it as UTF-8.") from err


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    lines, table = path / "metadata.jsonl", path / "metadata.csv"
    rows: list[dict[str, Any]] = []
    try:
        if lines.exists():
            rows = [json.loads(line) for line in _text(lines).split("\n") if line.strip()]
        elif table.exists():
            rows = list(csv.DictReader(io.StringIO(_text(table), newline="")))
        return {str(row.pop("file_name")): row for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as err:
        raise DataError(f"{path}: metadata needs a `file_name` in every row: {err!r}") from err
