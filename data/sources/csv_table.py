"""A CSV or TSV file as the rows of a table."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ...errors import DataError
from ..decode import MAX_TEXT
from ..items import printable
from .json_table import Row

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def rows(path: Path) -> Iterator[tuple[str, Row | str]]:
    """Yields (name, row); what is wrong with it stands in place of a bad row.

    Raises:
        DataError: no table, one that is not in UTF-8, or two columns of one name.
        OSError: no such file.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_TEXT))
        reader = csv.reader(file, **_manner(file, path.suffix.lower() == ".tsv"))
        try:
            header = [name.strip() for name in next(reader, [])]
            if any("\0" in name or printable(name) != name for name in header):
                raise DataError(f"{path} is not in UTF-8. Save it as that.")
            require_distinct(header, path)
            for cells in reader:
                if cells:
                    yield f"{path.name}:{reader.line_num}", _row(header, cells)
        except csv.Error as err:
            raise DataError(f"{path}: line {reader.line_num}: {err}. Correct the table.") from err


def require_distinct(columns: list[str], path: Path) -> None:
    """Two columns of one name would be one, and the other lost.

    Raises:
        DataError: there are some.
    """
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: a column's name comes twice in {columns}. Rename one.")


def _manner(file: TextIO, tabs: bool) -> dict[str, Any]:
    """How the cells of a file are told apart; leaves it at its start."""
    first = file.readline()
    comma = "\t" if tabs else _comma(first)
    manner: dict[str, Any] = {"delimiter": comma, "strict": True}
    # Where a space follows the commas of the header it is no part of the names, nor of the cells.
    manner["skipinitialspace"] = f"{comma} " in first
    if tabs and _has_bare_quotes(file, manner):
        manner["quoting"] = csv.QUOTE_NONE
    file.seek(0)
    return manner


def _comma(header: str) -> str:
    """What separates the columns of a .csv: a comma, or where the header has none, a semicolon (as
    spreadsheets write in half of Europe), a tab or a bar."""
    return next((mark for mark in ",;\t|" if mark in header), ",")


def _has_bare_quotes(file: TextIO, manner: dict[str, Any]) -> bool:
    """Whether the quotes of a TSV are characters like any other, as TSV itself has them.

    They are if they make no sense otherwise, or if every line is a row as it stands and some cell
    begins with a quote that the same cell does not close.
    """
    file.seek(0)
    try:
        for _ in csv.reader(file, **manner):
            pass
    except csv.Error:
        return True
    file.seek(0)
    widths, bare = set[int](), False
    for line in filter(str.strip, file):
        cells = line.rstrip("\r\n").split("\t")
        widths.add(len(cells))
        bare = bare or any(cell[:1] == '"' and not _QUOTED.fullmatch(cell) for cell in cells)
    return bare and len(widths) == 1


def _row(header: list[str], cells: list[str]) -> Row | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells under {len(header)} columns"
    if any(printable(cell) != cell for cell in cells):
        return "not UTF-8"
    return dict(zip(header, cells, strict=True))
