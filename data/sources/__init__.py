"""Where samples come from: a folder of pictures, a table, or a Hugging Face dataset on disk."""

from pathlib import Path

from ...errors import DataError
from ..items import Source
from .arrow import SUFFIXES, ArrowFiles, arrow_files, is_dataset, require_none
from .files import Folder, has_pictures
from .tables import TABLES, Columns, Table


def open_source(
    place: str, columns: Columns | None = None, *, split: str | None = None, root: str | None = None
) -> Source:
    """The source at a path, told apart by what lies there.

    Args:
        place: a folder, or a .csv, .tsv, .json, .jsonl, .parquet, .arrow or .feather file.
        columns: of a table; found by their names and types where None.
        split: of a Hugging Face dataset with several.
        root: folder that a table's paths are relative to and must stay in; the table's by default.

    Raises:
        DataError: nothing there, or nothing that can be packed.
    """
    path, columns = Path(place).expanduser(), columns or Columns()
    base = Path(root).expanduser() if root else None
    if path.is_dir():
        if not is_dataset(path) and has_pictures(path):
            require_none(path, split)
            return Folder(path, columns)
        return ArrowFiles(path, arrow_files(path, split), columns, base or path)
    if not path.is_file():
        raise DataError(f"{place} is not a folder and not a table. Check the path.")
    require_none(path, split)
    if path.suffix.lower() in SUFFIXES:
        return ArrowFiles(path.parent, [path], columns, base or path.parent)
    if path.suffix.lower() in TABLES:
        return Table(path, columns, base or path.parent)
    raise DataError(
        f"{place}: {path.suffix or 'no suffix'} is no table that pack reads. Give a folder of "
        "pictures, or a .csv, .tsv, .json, .jsonl, .parquet, .arrow or .feather file. Tars of "
        "samples need no packing: diptych data index. Unpack other archives first."
    )
