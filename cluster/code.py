"""This very code: its digest, and a wheel of it for machines that have another version, or none.

The wheel is written here rather than built, so that an installed package makes one as well as a
checkout does, without a build tool or a network. It names no dependencies: Ray installs it with
pip, which would fetch torch for every job. They are the cluster's own.
"""

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import __version__

ROOT = Path(__file__).parents[1]
_FLOORS = ("data", "pretrain", "finetune", "cluster")
_ROOT_FILES = ("__init__.py", "__main__.py", "config.py", "errors.py", "py.typed")
_MADE = (1980, 1, 1, 0, 0, 0)
"""Of every file in the wheel, so that the same code is the same bytes."""


class Identity(NamedTuple):
    """Which code this is."""

    version: str
    digest: str
    """16 hex digits of SHA-256 over every file of the package."""


def files() -> Iterator[tuple[str, bytes]]:
    """(name below the package, content) of all its files, sorted."""
    found = [ROOT / name for name in _ROOT_FILES]
    for floor in _FLOORS:
        found += [path for path in (ROOT / floor).rglob("*") if path.is_file()]
    for path in sorted(found):
        name = path.relative_to(ROOT)
        if "__pycache__" not in name.parts and not any(p.startswith(".") for p in name.parts):
            yield name.as_posix(), path.read_bytes()


def identity() -> Identity:
    """Which code runs here."""
    found = hashlib.sha256()
    for name, content in files():
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return Identity(__version__, found.hexdigest()[:16])


def wheel(folder: Path) -> Path:
    """Writes the wheel into a folder; the same code gives the same bytes."""
    version, digest = identity()
    info = f"diptych-{version}+{digest}.dist-info"
    entries = [(f"diptych/{name}", content) for name, content in files()]
    about = f"Metadata-Version: 2.1\nName: diptych\nVersion: {version}+{digest}\n"
    kind = "Wheel-Version: 1.0\nGenerator: diptych\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    entries += [(f"{info}/METADATA", about.encode()), (f"{info}/WHEEL", kind.encode())]
    record = "".join(
        f"{name},sha256={_hash(content)},{len(content)}\n" for name, content in entries
    )
    entries.append((f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode()))
    path = folder / f"diptych-{version}+{digest}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in entries:
            one = zipfile.ZipInfo(name, _MADE)
            one.external_attr = 0o644 << 16
            out.writestr(one, content, zipfile.ZIP_DEFLATED)
    return path


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
