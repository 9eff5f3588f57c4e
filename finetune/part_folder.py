"""A folder of one model of diffusers: its tensors against those that config.json asks for."""

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Shape = tuple[int, ...]
_OURS = re.compile(r"diffusion_pytorch_model(\..+)?(-\d+-of-\d+)?\.safetensors")


def misfits(folder: Path) -> Iterator[str]:
    """Sentences of what diffusers would miss, drop or refuse; none where the class is another's.

    Raises:
        SafetensorError: a file of the folder is damaged.
    """
    files = [file for file in sorted(folder.iterdir()) if _OURS.fullmatch(file.name)]
    config = _config(folder / "config.json") if files else {}
    kind = _class(config.get("_class_name"))
    if kind is None:
        return
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as err:
        yield f"{folder.name}/config.json makes no {kind.__name__}: {err}."
        return
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    there = _shapes(files)
    model._fix_state_dict_keys_on_load(there)  # names of attention before diffusers 0.18
    yield from _compared(kind.__name__, wanted, there)


def _compared(kind: str, wanted: Mapping[str, Shape], there: Mapping[str, Shape]) -> Iterator[str]:
    lost, odd = sorted(wanted.keys() - there), sorted(there.keys() - wanted)
    if lost:
        yield f"{lost[0]} is missing ({len(lost)} in all): {kind} would begin with random numbers."
    if odd:
        yield f"{odd[0]} is unexpected ({len(odd)} in all): {kind} drops it."
    other = [name for name in sorted(wanted.keys() & there) if wanted[name] != there[name]]
    if other:
        name = other[0]
        yield (
            f"{name} has the shape {there[name]} ({len(other)} such), and by config.json it is "
            f"{wanted[name]}."
        )


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _class(name: Any) -> Any:
    """A model of diffusers by its name; None for everything else."""
    if not isinstance(name, str):
        return None
    diffusers: Any = importlib.import_module("diffusers")  # imports for seconds
    found = getattr(diffusers, name, None)
    return found if isinstance(found, type) and issubclass(found, diffusers.ModelMixin) else None


def _shapes(files: list[Path]) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names: list[str] = list(opened.keys())
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    return found
