"""Parquet and Arrow files, and Hugging Face datasets on disk, read with pyarrow alone."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..items import Item, Notes
from .csv_table import require_distinct
from .tables import Columns, item

SUFFIXES = (".parquet", ".arrow", ".feather")
_ROWS = 32
"""Rows in memory at once."""
_LISTS = ("List", "LargeList", "Sequence")
_NAME = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_SPLIT = re.compile(
    r"(?:^|[-._ ])(train|test|val|valid|validation|dev|eval)(?=[-._ \d]|$)", re.IGNORECASE
)
"""A word in a file's name, where Hugging Face looks for it too."""


class ArrowFiles:
    """The rows of Parquet or Arrow files, in the order of the files."""

    def __init__(self, folder: Path, files: list[Path], columns: Columns, root: Path) -> None:
        self.folder, self.files, self.columns, self.root = folder, files, columns, root
        self.notes = Notes()

    def __iter__(self) -> Iterator[Item]:
        """Yields the rows, a few read at a time."""
        for path in self.files:
            info = path.stat()
            mark = f"{path.name}:{info.st_size}:{info.st_mtime_ns}"
            for number, row, columns in self.rows(path):
                place = f"{path.relative_to(self.folder)}:{number}"
                where = {"name": place, "mark": f"{mark}:{number}"}
                yield item(row, columns, root=self.root, **where)

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any], Columns]]:
        """Yields (number, row, which column is what) of one file.

        Raises:
            DataError: a damaged file, two columns of one name, or none that could be the picture.
        """
        try:
            yield from self._rows(path)
        except (_pyarrow().ArrowException, OSError) as err:
            raise DataError(
                f"{path} is damaged or no such table: {str(err).rstrip('.')}. Get it again."
            ) from err

    def _rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any], Columns]]:
        batches = _batches(path)
        first = next(batches, None)
        if first is None:
            return
        names = first.schema.names
        require_distinct(names, path)
        kinds, images = features(first.schema), picture_columns(first.schema)
        labels = [_name(name) for name, kind in kinds.items() if _classes(kind)]
        columns = self.columns.named([*names, *labels], source=str(path), images=images)
        dropped = {field.name for field in first.schema if _binary(field.type)} - {columns.image}
        self.notes.columns |= dropped
        wanted = [name for name in names if name not in dropped]
        rows = (_told(batch.select(wanted), path) for batch in itertools.chain([first], batches))
        for number, row in enumerate(itertools.chain.from_iterable(rows)):
            yield number, named(row, kinds), columns


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a Hugging Face dataset, even with a few pictures about."""
    saved = any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
    return saved or any(_NAME.match(path.stem) for path in folder.rglob("*-of-*.parquet"))


def arrow_files(folder: Path, split: str | None) -> list[Path]:
    """The data files of a dataset folder: of `save_to_disk`, or Parquet and Arrow files below it.

    Raises:
        DataError: no such files, or several splits of which none was chosen.
    """
    if (folder / "dataset_dict.json").exists():
        splits = _json(folder / "dataset_dict.json")["splits"]
        return arrow_files(folder / _chosen(folder, splits, split), None)
    if (folder / "state.json").exists():
        require_none(folder, split)
        state = _json(folder / "state.json")
        if state.get("_indices_data_files"):
            raise DataError(f"{folder} is a selection of rows: save it after flatten_indices().")
        return [folder / each["filename"] for each in state["_data_files"]]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"{folder} holds no pictures and no .parquet or .arrow files. Check the path."
        )
    splits = {path: _split(path, folder) for path in files}
    if len(set(splits.values())) == 1 and (split is None or "" in splits.values()):
        require_none(folder, split)
        return files
    chosen = _chosen(folder, sorted({*splits.values()}), split)
    return [path for path in files if splits[path] == chosen]


def require_none(place: Path, split: str | None) -> None:
    """Refuses the name of a split where there are none."""
    if split is not None:
        raise DataError(f"{place} has no splits, so none is called {split!r}. Leave out --split.")


def picture_columns(schema: Any) -> list[str]:
    """Columns that hold pictures: so called by Hugging Face, or a struct of bytes and path."""
    found = features(schema)
    kinds = {name: each.get("_type") for name, each in found.items() if isinstance(each, dict)}
    return [
        field.name
        for field in schema
        if kinds.get(field.name) == "Image"
        or (field.name not in kinds and _fields(field.type) == {"bytes", "path"})
    ]


def features(schema: Any) -> dict[str, Any]:
    """What Hugging Face says of each column."""
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return found.get("info", {}).get("features", {})


def named(row: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the names of its class labels beside their numbers: `label_name` after `label`.

    Args:
        row: its cells; those that hold records, or lists of them, are treated alike.
        kinds: `features` of its columns.
    """
    found = dict[str, Any]()
    for column, value in row.items():
        kind = _inner(kinds.get(column))
        if isinstance(kind, dict) and "_type" not in kind:  # of a record
            value = _each(
                value, lambda one, of=kind: named(one, of) if isinstance(one, dict) else one
            )
        found[column] = value
        if (classes := _classes(kind)) and _name(column) not in row and value is not None:
            found[_name(column)] = _each(value, lambda one, of=classes: _class(one, of))
    return found


def _name(column: str) -> str:
    return f"{column}_name"


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return [_each(one, change) for one in value] if isinstance(value, list) else change(value)


def _class(number: Any, classes: Sequence[str]) -> str | None:
    known = isinstance(number, int) and 0 <= number < len(classes)
    return classes[number] if known else None  # -1 is no class


def _classes(kind: Any) -> list[str]:
    """The names of a column of class labels, or of lists of them."""
    kind = _inner(kind)
    label = isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    return kind.get("names") or [] if label else []


def _inner(kind: Any) -> Any:
    """What a list is a list of."""
    while isinstance(kind, list) or (isinstance(kind, dict) and kind.get("_type") in _LISTS):
        kind = (kind or [None])[0] if isinstance(kind, list) else kind.get("feature")
    return kind


def _batches(path: Path) -> Iterator[Any]:
    """Record batches of at most `_ROWS` rows, mapped from the file where its format allows."""
    pyarrow = _pyarrow()
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(_ROWS)
        return
    with pyarrow.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(mapped)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(mapped))
        for batch in batches:
            for first in range(0, batch.num_rows, _ROWS):
                yield batch.slice(first, _ROWS)


def _told(batch: Any, path: Path) -> list[dict[str, Any]]:
    """The rows of a batch; a time that Python cannot hold, such as one of nanoseconds, is a text.

    Raises:
        DataError: another value that it cannot hold.
    """
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        names = batch.schema.names
        columns = [
            [_value(one, f"{path}: column {name!r}") for one in column]
            for name, column in zip(names, batch.columns, strict=True)
        ]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _value(one: Any, where: str) -> Any:
    try:
        return one.as_py()
    except (ValueError, OverflowError) as err:
        pyarrow = _pyarrow()
        if pyarrow.types.is_temporal(one.type):
            return one.cast(pyarrow.string()).as_py()
        raise DataError(
            f"{where} holds a value that cannot be read: {err}. Write the column as text."
        ) from err


def _split(path: Path, folder: Path) -> str:
    """The split, and the configuration if there are some, by a file's folders and name."""
    whole, word = _NAME.match(path.stem), _SPLIT.search(path.stem)
    found = whole[1] if whole else word[1].lower() if word else ""
    parts = [*path.relative_to(folder).parts[:-1], found]
    told = [part for part in parts if part not in ("", "data", "default", "part")]
    return "/".join(part for part, _ in itertools.groupby(told))


def _chosen(folder: Path, splits: list[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        said = f"{split!r} is none of them" if split else "choose one"
        names = ", ".join(name or "''" for name in splits)
        raise DataError(f"{folder} has the splits {names}: {said}. Give --split NAME.")
    return split


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is damaged: {err}. Save the dataset again.") from err


def _binary(kind: Any) -> bool:
    """Whether any part of a type is bytes."""
    types = _pyarrow().types
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    if types.is_binary_view(kind):
        return True
    if types.is_dictionary(kind):
        return _binary(kind.value_type)
    return any(_binary(kind.field(place).type) for place in range(kind.num_fields))


def _fields(kind: Any) -> set[str]:
    return {kind.field(place).name for place in range(kind.num_fields)}


def _pyarrow() -> Any:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.types

    return pyarrow
