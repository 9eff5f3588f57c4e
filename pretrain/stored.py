"""Weights and settings as other libraries store them: safetensors and JSON, and nothing else is
opened."""

import json
import re
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from ..data import storage
from ..errors import CheckpointError

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_INDEX = re.compile(r"\.safetensors(\.\w+)?\.index(\.\w+)?\.json$")
"""Of shards, plain or of a variant; versions of diffusers differ in where they put its name."""


def settings(url: str) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        found = json.loads(storage.read(url))
    except ValueError as err:
        raise CheckpointError(f"{url} is damaged: {err}. Copy it again.") from err
    if not isinstance(found, dict):
        raise CheckpointError(f"{url} is damaged: no JSON object. Copy it again.")
    return found


def files(home: str) -> list[str]:
    """The files of a folder's weights: one, or those that an index lists; fp32 before variants.

    Raises:
        CheckpointError: there are none, or too many, or one is missing.
    """
    names = storage.children(home)
    if whole := [name for name in _WHOLE if name in names]:
        return [storage.join(home, whole[0])]
    if index := sorted((n for n in names if _INDEX.search(n)), key=len):
        listed = sorted(set(settings(storage.join(home, index[0])).get("weight_map", {}).values()))
        if lost := [name for name in listed if name not in names]:
            raise CheckpointError(f"{home} lacks {lost[0]}, which {index[0]} lists. Copy it too.")
        return [storage.join(home, name) for name in listed]
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) != 1:
        pickled = [name for name in names if name.endswith(PICKLES)]
        said = f"only {pickled[0]}, a pickle" if pickled else f"{len(found)} .safetensors files"
        raise CheckpointError(
            f"{home} holds {said}; one of {' or '.join(_WHOLE)} is wanted. Save it again with "
            "safe_serialization=True."
        )
    return [storage.join(home, found[0])]


def state(url: str) -> dict[str, Tensor]:
    """All tensors of a folder's weights, or of one .safetensors file.

    Raises:
        CheckpointError: as `files` and `tensors`.
    """
    found: dict[str, Tensor] = {}
    for file in [url] if url.endswith(".safetensors") else files(url):
        found |= tensors(file)
    return found


def tensors(url: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: it is damaged, or not there.
    """
    try:
        if storage.is_local(url):
            return load_file(storage.local_path(url))
        return load(storage.read(url))
    except (SafetensorError, FileNotFoundError) as err:
        raise CheckpointError(
            f"{url} is no whole safetensors file: {err}. Download it again."
        ) from err
