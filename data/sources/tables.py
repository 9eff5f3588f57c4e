"""Rows of tables as inputs: which column is the picture, which the caption."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..items import Item, Members, Notes, Unreadable, key_of, printable
from . import csv_table, json_table
from .beside import picture, plain, stamp
from .json_table import Row

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")

_IMAGES = ("file_name", "image", "image_path", "filepath", "filename", "path", "file", "img")
_IMAGES += ("jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_CAPTIONS = ("text", "caption", "txt", "captions", "description", "prompt", "sentence", "title")


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; all others make the JSON record."""

    image: str | None = None
    """A path below the table's folder, the bytes of a picture, or {bytes, path}."""
    caption: str | None = None
    """A text, or a list of texts, of which the first is the caption."""
    key: str | None = None
    """An id of the row; by default a row is called after its picture and its content."""

    def named(self, names: list[str], *, source: str, images: list[str] | None = None) -> "Columns":
        """The columns by name, those not given found among `names`.

        Args:
            names: all columns.
            source: of the message.
            images: columns whose type says that they hold pictures.

        Raises:
            DataError: a column that is not there, or none that could be the picture.
        """
        for option in ("image", "caption", "key"):
            if (name := getattr(self, option)) is not None and name not in names:
                raise DataError(
                    f"{source} has no column {name!r}, only {', '.join(names)}. Correct --{option}."
                )
        likely = [*(images or []), *_called(_IMAGES, names)]
        if not self.image and not likely:
            raise DataError(
                f"{source}: none of the columns {', '.join(names)} looks like a picture. Name "
                "the one that holds a path or bytes: --image COLUMN."
            )
        image = self.image or likely[0]
        texts = [name for name in _called(_CAPTIONS, names) if name != image]
        return Columns(image, self.caption or (texts[0] if texts else None), self.key)

    def of_rows(self, found: Iterable[tuple[str, Row | str]], *, source: str) -> "Columns":
        """The columns by the first rows that have them, as rows of JSON may leave some out.

        Args:
            found: `rows` of a table, read no further than to the last column.
            source: of the message.

        Raises:
            DataError: a column that no row has, or none that could be the picture.
        """
        names: dict[str, None] = {}
        image, caption = self.image, self.caption
        for _, row in found:
            if isinstance(row, str):
                continue
            names |= dict.fromkeys(row)
            image = image or next(iter(_called(_IMAGES, row)), None)
            texts = (name for name in _called(_CAPTIONS, row) if name != image)
            caption = caption or next(texts, None)
            if image and caption and {image, caption, self.key} - {None} <= names.keys():
                break
        whole = replace(self, image=image, caption=caption)
        return whole.named(list(names), source=source) if names else self


def _called(wanted: Iterable[str], names: Collection[str]) -> list[str]:
    """The names that are wanted, in that order; those that are so but for capitals come last."""
    exact = [name for name in wanted if name in names]
    return exact + [n for one in wanted for n in names if n.lower() == one and n not in exact]


def item(row: Row, columns: Columns, *, name: str, root: Path, mark: str = "") -> Item:
    """One row as an input.

    Args:
        row: its cells.
        columns: `Columns.named`.
        name: of the row in lists.
        root: folder that paths are relative to and must stay in.
        mark: what changes with the row, if that is cheaper to tell than its content.
    """
    try:
        return _item(row, columns, name, root, mark)
    except RecursionError:
        return bad_row(name, "unreadable row", "too deep")


def _item(row: Row, columns: Columns, name: str, root: Path, mark: str) -> Item:
    where, blob = _picture(row.get(columns.image or ""))
    record = {
        plain(column): plain(value) for column, value in row.items() if column != columns.image
    }
    caption = record.pop(columns.caption, None) if columns.caption else None
    if isinstance(caption, list):  # the first is the text, and the record keeps them all
        record[columns.caption or ""] = caption
        caption = next((one for one in caption if isinstance(one, str) and one.strip()), "")
    caption = "" if caption is None else str(caption).strip()
    own = json.dumps([caption, record], sort_keys=True)
    stem = os.path.splitext(os.path.normpath(where))[0] if where else ""
    seen = "" if blob is None else hashlib.blake2b(blob, digest_size=8).hexdigest()
    chosen = plain(row.get(columns.key)) if columns.key else None
    if columns.key == columns.image:
        chosen = where
    named = str(chosen) if chosen not in (None, "") else ""
    key = key_of(named) if named else key_of(stem or seen, own, seen)
    mark = (mark or own) + (stamp(root / where) if where and blob is None else "")
    mark = hashlib.blake2b(mark.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    def load() -> Members:
        members = {"image": blob} if blob else picture(_inside(where, root))
        beside = json.loads(members.pop("json", b"{}"))
        if caption:
            members["txt"] = caption.encode("utf-8", "backslashreplace")
        if record or beside:
            members["json"] = json.dumps({**beside, **record}).encode()
        return members

    # A path says what a file shows, but of bytes it may say "image.png" a thousand times.
    return Item(printable(name), key, printable(seen or stem or name), mark, load)


def bad_row(name: str, reason: str, detail: str) -> Item:
    """A row that is none; it is listed among the unreadable."""

    def load() -> Members:
        raise Unreadable(reason, detail)

    return Item(printable(name), key_of(name, detail), printable(name), detail, load)


def _picture(cell: Any) -> tuple[str, bytes | None]:
    """(path or "", bytes or None) of a cell."""
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, Mapping):
        path, blob = cell.get("path"), cell.get("bytes")
        return str(path or ""), blob if isinstance(blob, bytes) and blob else None
    if isinstance(cell, bytes):
        return "", cell
    return (cell.strip().removeprefix("file://"), None) if isinstance(cell, str) else ("", None)


def _inside(where: str, root: Path) -> Path:
    """The path, refused if it leads out of `root`: a table from elsewhere may name any file."""
    if not where:
        raise Unreadable("no picture", "the cell holds no path and no bytes")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:/", where):
        raise Unreadable("a URL", "pack downloads nothing; fetch it first, or use img2dataset")
    home = os.path.abspath(root)
    path = os.path.abspath(os.path.join(home, where))
    if os.path.commonpath([home, path]) != home:
        raise Unreadable("outside the folder", f"{where} leads out of {root}; see --root")
    return Path(path)


class Table:
    """The rows of a CSV, TSV, JSONL or JSON file."""

    def __init__(self, path: Path, columns: Columns, root: Path) -> None:
        self.path, self.columns, self.root = path, columns, root
        self.notes = Notes()

    def __iter__(self) -> Iterator[Item]:
        """Yields the rows in the order they lie in the file."""
        self.notes.ignored.clear()
        columns, found = opened(self.path, self.columns, self.notes)
        for name, row in found:
            if isinstance(row, str):
                yield bad_row(name, "unreadable row", row)
            else:
                yield item(row, columns, name=name, root=self.root)


def opened(
    path: Path, columns: Columns, notes: Notes
) -> tuple[Columns, Iterable[tuple[str, Row | str]]]:
    """Which columns of a table are what, and its `rows`; what these leave out is in the notes.

    Raises:
        DataError: as `rows` and `Columns.named`.
    """
    suffix, found = path.suffix.lower(), rows(path, notes)
    if suffix in (".csv", ".tsv"):  # their header names all columns, so one good row is enough
        found = itertools.islice((each for each in found if not isinstance(each[1], str)), 1)
    elif suffix == ".json":  # which is in memory anyway
        found = list(found)
        return columns.of_rows(found, source=str(path)), found
    return columns.of_rows(found, source=str(path)), rows(path, notes)


def rows(path: Path, notes: Notes) -> Iterator[tuple[str, Row | str]]:
    """Yields (name, row) of a table; what is wrong with it stands in place of a bad row.

    Raises:
        DataError: no such file, or no table at all.
    """
    suffix = path.suffix.lower()
    kinds = {".csv": csv_table.rows, ".tsv": csv_table.rows}
    try:
        if suffix == ".json":
            yield from json_table.rows(path, notes.ignored)
        else:
            yield from kinds.get(suffix, _json_lines)(path)
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err.strerror}. Check the path.") from err


def _json_lines(path: Path) -> Iterator[tuple[str, Row | str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as err:
                yield f"{path.name}:{number}", f"not a line of JSON: {err}"
                continue
            good = isinstance(row, dict)
            yield f"{path.name}:{number}", row if good else f"a {type(row).__name__}, no object"
