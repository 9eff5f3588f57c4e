"""A picture on disk and what lies beside it: `photo.jpg`, `photo.txt`, `photo.json`."""

import json
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..items import Members, Unreadable

SIDECARS = (".txt", ".json")


def picture(path: Path) -> Members:
    """The picture, its caption and its record, as far as they are there.

    Without a .txt, a `text` or `caption` of the .json is the caption.

    Raises:
        Unreadable: no such picture, or a caption or record that is none.
    """
    blob = _file(path)
    if blob is None:
        raise Unreadable("missing picture", str(path))
    members = {"image": blob}
    text, record = (_file(path.with_suffix(suffix)) for suffix in SIDECARS)
    caption = _text(text or b"", path)
    if record is not None:
        fields = plain(_record(record, path))
        if text is None:
            found = fields.get("text") or fields.get("caption")
            caption = found.strip() if isinstance(found, str) else ""
        members["json"] = json.dumps(fields).encode()
    if caption:
        members["txt"] = caption.encode()
    return members


def stamp(path: Path) -> str:
    """Size and time of the picture and of what lies beside it."""
    found: list[str] = []
    for suffix in (None, *SIDECARS):
        try:
            info = (path if suffix is None else path.with_suffix(suffix)).stat()
        except (OSError, ValueError):
            found.append("-")
        else:
            found.append(f"{info.st_size}:{info.st_mtime_ns}")
    return " ".join(found)


def plain(value: Any) -> Any:
    """A value as JSON in UTF-8 can hold it: not-a-number is null, half a character U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else re.sub(r"[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value)


def _file(path: Path) -> bytes | None:
    """The bytes of a file; of pipes and devices, which may have no end, as little as of none."""
    try:
        whole = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return path.read_bytes() if whole else None


def _text(blob: bytes, path: Path) -> str:
    try:
        return blob.decode("utf-8-sig").strip()
    except UnicodeDecodeError as err:
        raise Unreadable("caption is not UTF-8", f"{path.with_suffix('.txt').name}: {err}") from err


def _record(blob: bytes, path: Path) -> dict[str, object]:
    name = path.with_suffix(".json").name
    try:
        fields = json.loads(blob.decode("utf-8-sig"))
    except (ValueError, RecursionError) as err:
        raise Unreadable("record is not JSON", f"{name}: {err}") from err
    if not isinstance(fields, dict):
        raise Unreadable("record is not JSON", f"{name}: a {type(fields).__name__}, no object")
    return fields
