"""`diptych verify`: is an exported file what it says it is, and would others load it?

An export of ours is held against its own account (in its metadata) and its proof; a file of others
against the rules of its layout; with a base, each against the base's modules. Pickles are refused
unread.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from ..errors import ExportError
from . import part_folder
from .adapter_file import ACCOUNT
from .layouts import Read, against_base, alphas, layout, remarks, rules, spoilt
from .prove import is_pickle

_OWN = ("proof.json", "README.md")
_SAID = 8
_TOLD = (ACCOUNT, "lora_adapter_metadata")
"""Keys of metadata whose values are JSON objects."""


@dataclass
class Verdict:
    """What was found of one export."""

    path: Path
    layout: str = ""
    tensors: int = 0
    proven: str = ""
    """What the stored proof says, if there is one."""
    wrong: list[str] = field(default_factory=list[str])
    """Sentences, each with what to do."""
    notes: list[str] = field(default_factory=list[str])

    def require(self) -> None:
        """Raises ExportError with all that is wrong."""
        if self.wrong:
            raise ExportError(f"{self.path} would not load as it should: " + " ".join(self.wrong))


def verify(path: Path, base: Mapping[str, Mapping[str, Any]] | None = None) -> Verdict:
    """Looks at a file or a folder; `base` are the shapes of the base's tensors by side.

    Raises:
        ExportError: there is nothing to look at.
    """
    found = Verdict(path)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    if not files:
        raise ExportError(f"{path} is neither a file nor a folder with files.")
    for file in files:
        if is_pickle(file):
            found.wrong.append(
                f"{file.name} may be a pickle, which can run any code; it was not read. Ask for "
                "safetensors."
            )
    _proof(found, path)
    stored = [
        file for file in files if file.suffix == ".safetensors" and file.parent.name != "proof"
    ]
    for file in stored:
        try:
            _file(found, file, base)
        except ExportError as err:
            found.wrong.append(str(err))
        except (SafetensorError, OSError, ValueError) as err:
            found.wrong.append(f"{file.name} is no whole safetensors file: {err}.")
    if not stored and not found.wrong and not found.proven:  # ONNX was proven without any
        found.wrong.append("It holds no .safetensors file.")
    for home in dict.fromkeys(file.parent for file in stored):
        try:
            found.wrong += part_folder.misfits(home)
        except (SafetensorError, OSError):
            continue  # said above, of that very file
    found.wrong = _shortened(list(dict.fromkeys(found.wrong)))
    return found


def _shortened(wrong: list[str]) -> list[str]:
    """One fault may be said of each of hundreds of modules."""
    more = len(wrong) - _SAID
    return wrong if more <= 1 else [*wrong[:_SAID], f"And {more} more such sentences."]


def read(file: Path) -> Read:
    """Shapes and metadata of a safetensors file, and the tensors that are single numbers.

    Raises:
        ExportError: the adapter_config.json beside it is damaged, or its metadata.
    """
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata() or {})
        names: list[str] = list(opened.keys())
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        scalars = {
            name: float(opened.get_tensor(name)) for name, shape in shapes.items() if shape == ()
        }
    for name in _TOLD:
        _object(metadata.get(name, "{}"), f"{file.name}'s metadata {name!r}")
    beside = file.parent / "adapter_config.json"
    config = _object(beside.read_text(), beside.name) if beside.exists() else {}
    return Read(file, shapes, metadata, scalars, config)


def _object(blob: str, called: str) -> dict[str, Any]:
    try:
        found = json.loads(blob)
    except ValueError as err:
        raise ExportError(f"{called} is damaged: {err}. Copy it again.") from err
    if not isinstance(found, dict):
        raise ExportError(f"{called} is damaged: no JSON object. Copy it again.")
    return cast(dict[str, Any], found)


def _file(found: Verdict, file: Path, base: Mapping[str, Mapping[str, Any]] | None) -> None:
    seen = read(file)
    kind = layout(seen)
    found.layout, found.tensors = kind, found.tensors + len(seen.shapes)
    if odd := list(spoilt(seen, kind)):
        found.wrong += odd
        return
    if ACCOUNT in seen.metadata:
        found.wrong += _account(seen, json.loads(seen.metadata[ACCOUNT]), base)
    found.wrong += rules(seen, kind)
    found.wrong += _broken(seen)
    found.notes += remarks(seen, kind)
    if base:
        found.wrong += against_base(seen, kind, base)


def _broken(seen: Read) -> Iterator[str]:
    """Numbers that would turn every picture black."""
    with safe_open(seen.file, framework="pt") as opened:
        for name in seen.shapes:
            tensor = opened.get_tensor(name)
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                yield f"{name} holds numbers that are not finite: it was damaged, or diverged."
                return


def _account(
    seen: Read, told: dict[str, Any], base: Mapping[str, Mapping[str, Any]] | None
) -> Iterator[str]:
    """What differs from what the file says of itself."""
    wanted = {name: tuple(shape) for name, shape in told.get("tensors", {}).items()}
    missing, odd = sorted(wanted.keys() - seen.shapes), sorted(seen.shapes.keys() - wanted)
    if missing:
        yield f"{missing[0]} is missing ({len(missing)} in all); export again."
    if odd:
        yield f"{odd[0]} is unexpected ({len(odd)} in all): was a key renamed? Export again."
    for name in sorted(wanted.keys() & seen.shapes.keys()):
        if wanted[name] != seen.shapes[name]:
            yield f"{name} has the shape {seen.shapes[name]}, it was written as {wanted[name]}."
    here = alphas(seen)
    for name, alpha in told.get("alphas", {}).items():
        if name not in here:
            yield f"the alpha of {name} is lost (it was {alpha:g}); export again."
            return
        if here[name] != alpha:
            yield f"the alpha of {name} is {here[name]:g}, it was trained with {alpha:g}."
            return
    theirs = {side: each.get("digest") for side, each in (base or {}).items()}
    for side, digest in told.get("bases", {}).items():
        if theirs.get(side) not in (None, digest):
            yield (
                f"it was trained on another base: {side} {digest}, here {theirs[side]}. "
                f"Use {told.get('base_run')}."
            )


def _proof(found: Verdict, path: Path) -> None:
    """Holds the files against the SHA-256 of the stored proof."""
    home = path if path.is_dir() else path.parent
    file = home / "proof.json"
    if not file.exists():
        found.notes.append("there is no stored proof: it is no whole export of Diptych's")
        return
    try:
        proof = json.loads(file.read_text())
        sums: dict[str, str] = proof["sha256"]
        found.proven = f"{proof['loader']}: {proof['max_difference']}"
    except (ValueError, KeyError, TypeError) as err:
        found.wrong.append(f"proof.json is damaged ({err!r}); export again.")
        return
    for name, wanted in sums.items():
        place = home / name
        if name in _OWN:
            continue
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.wrong.append(f"proof.json names {name}, which is outside the folder; not read.")
        elif not place.is_file():  # links are followed, as of a cache of the hub
            found.wrong.append(f"{name} is missing, and was there when it was proven.")
        elif hashlib.sha256(place.read_bytes()).hexdigest() != wanted:
            found.wrong.append(f"{name} changed since it was proven (SHA-256).")
