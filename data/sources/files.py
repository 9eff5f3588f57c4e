"""A folder of pictures, with captions beside them or in a metadata table of their folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..decode import is_image
from ..items import Item, Members, Notes, Unreadable, key_of, printable
from .arrow import ArrowFiles
from .beside import SIDECARS, picture, stamp
from .json_table import Row
from .tables import Columns, bad_row, item, opened

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
_CONVERTED = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".tif", ".tiff")
_FOREIGN = (".heic", ".heif", ".jxl")


def has_pictures(folder: Path) -> bool:
    """Whether any file below a folder is called like a picture."""
    for _, _, names in os.walk(folder):
        if any(_is_picture(name) or _suffix(name) in _FOREIGN for name in names):
            return True
    # But for .parquet, which a folder of such tables may have among the others.
    return any((folder / name).exists() for name in METADATA[:-1])


class Folder:
    """Every picture below a folder, in the order of their paths.

    A `metadata.jsonl`, `.csv`, `.tsv` or `.parquet` beside pictures names them in `file_name` (or
    another column) and gives their captions and records; its rows come first, then the pictures
    that no row names. Links to folders are not followed.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.notes = Notes()

    def __iter__(self) -> Iterator[Item]:
        """Yields every picture, and every file that is one but cannot be packed."""
        self.notes.ignored.clear()
        yield from self._folder(self.path, "", set())

    def _folder(self, folder: Path, inner: str, named: set[str]) -> Iterator[Item]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as err:
            yield bad_row(inner or ".", "folder cannot be read", str(err.strerror))
            return
        looped = {entry.name for entry in entries if _loops(entry)}
        for name in sorted(looped):
            yield bad_row(inner + name, "link to itself", "remove it")
        entries = [entry for entry in entries if entry.name not in looped]
        files = [entry.name for entry in entries if not entry.is_dir()]
        for name in files:
            if name in METADATA:
                yield from self._rows(folder / name, inner, named)
        yield from self._files(folder, inner, files, named)
        for entry in entries:
            if not entry.is_dir():
                continue
            if entry.is_symlink():
                yield bad_row(inner + entry.name, "link to a folder", "pack what it leads to")
            elif entry.name.startswith("."):
                self.notes.ignored["hidden folder"] += 1
            else:
                yield from self._folder(folder / entry.name, f"{inner}{entry.name}/", named)

    def _rows(self, table: Path, inner: str, named: set[str]) -> Iterator[Item]:
        for place, row, columns in self._told(table):
            if isinstance(row, str):
                yield bad_row(inner + place, "unreadable row", row)
                continue
            row[columns.image or ""] = inner + str(row.get(columns.image or "") or "")
            named.add(os.path.normpath(row[columns.image or ""]))
            yield item(row, columns, name=inner + place, root=self.path)

    def _told(self, table: Path) -> Iterator[tuple[str, Row | str, Columns]]:
        """(name, row, which column is what) of a metadata table."""
        if table.suffix == ".parquet":
            arrow = ArrowFiles(table.parent, [table], self.columns, self.path)
            for number, row, columns in arrow.rows(table):
                yield f"{table.name}:{number}", row, columns
            self.notes.columns |= arrow.notes.columns
            return
        columns, found = opened(table, self.columns, self.notes)
        for place, row in found:
            yield place, row, columns

    def _files(self, folder: Path, inner: str, names: list[str], named: set[str]) -> Iterator[Item]:
        pictures = [name for name in names if _is_picture(name)]
        stems = [os.path.splitext(name)[0] for name in pictures]
        for name in names:
            stem, suffix = os.path.splitext(name)
            if name in pictures:
                if inner + name not in named:
                    yield _item(folder / name, inner, twice=stems.count(stem) > 1)
            elif suffix.lower() in _FOREIGN:
                yield bad_row(inner + name, "not a JPEG, PNG or WebP", "convert it first")
            elif not (suffix in SIDECARS and stem in stems) and name not in METADATA:
                self.notes.ignored[suffix.lower() or "no suffix"] += 1


def _item(path: Path, inner: str, *, twice: bool) -> Item:
    stem, suffix = os.path.splitext(inner + path.name)

    def load() -> Members:
        try:
            return picture(path)
        except PermissionError as err:
            raise Unreadable("permission denied", str(path)) from err

    # a.jpg and a.png share their caption; each key then says which one it is.
    key = key_of(stem + suffix) if twice else key_of(stem)
    return Item(printable(inner + path.name), key, printable(stem), stamp(path), load)


def _loops(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link that leads nowhere but back."""
    try:
        entry.is_dir()
    except OSError:
        return True
    return False


def _is_picture(name: str) -> bool:
    known = is_image(_suffix(name)[1:]) or _suffix(name) in _CONVERTED
    return known and not name.startswith(".")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
