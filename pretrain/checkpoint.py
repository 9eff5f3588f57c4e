"""The format of a checkpoint: slices of tensors in safetensors files, one JSON manifest, no pickle.

`checkpoints/<step>/<attempt>/rank-<r>.safetensors` hold flat fp32 slices; `<step>/manifest.json`,
written last, says of each slice which parameter it belongs to, from which element on, and its
crc32. Whoever reads takes the slices it needs, whatever world size or ZeRO stage wrote them.
"""

import functools
import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..data import storage
from ..errors import CheckpointError, StorageError

FORMAT = 1
FOLDER = "checkpoints"
WEIGHT = "weight"
"""The kind of slice that holds the fp32 master weights; other kinds are optimiser moments."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of elements of a flattened parameter, and where its bytes are."""

    param: str
    kind: str
    offset: int
    """First element in the flattened parameter."""
    length: int
    """Elements."""
    file: str
    """Name below the step's folder."""
    start: int
    """First byte in the file."""
    crc32: int


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its manifest was there, and so it can be trusted."""

    url: str
    step: int
    recipe: str
    """Digest of the recipe that made it."""
    shapes: Mapping[str, tuple[int, ...]]
    slices: tuple[Slice, ...]
    extra: Mapping[str, Any]
    """What the writer added: world size, ZeRO stage, optimiser steps."""

    def read(self, param: str, kind: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Elements [offset, offset + length) of a flattened parameter or moment, fp32.

        Raises:
            CheckpointError: the parameter is not in it, has holes, or its bytes changed.
        """
        if param not in self.shapes:
            raise CheckpointError(f"{self.url} has no parameter {param!r}; another model wrote it.")
        whole = torch.Size(self.shapes[param]).numel()
        length = whole - offset if length is None else length
        found = torch.empty(length)
        filled = 0
        for piece in sorted(self._of.get((param, kind), ()), key=lambda piece: piece.offset):
            first, last = (
                max(offset, piece.offset),
                min(offset + length, piece.offset + piece.length),
            )
            if first < last:
                if first != offset + filled or piece.offset + piece.length > whole:
                    break  # a hole, elements that stand twice, or more than the parameter has
                data = self._bytes(piece)
                found[first - offset : last - offset] = data[
                    first - piece.offset : last - piece.offset
                ]
                filled += last - first
        if filled != length:
            raise CheckpointError(
                f"{self.url}: {kind} of {param!r} has {filled} of {length} elements without a gap. "
                "Delete this checkpoint: an older one is gone on from."
            )
        return found

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, whole and in its shape, fp32."""
        return {name: self.read(name, WEIGHT).view(shape) for name, shape in self.shapes.items()}

    @functools.cached_property
    def _of(self) -> Mapping[tuple[str, str], list[Slice]]:
        found: defaultdict[tuple[str, str], list[Slice]] = defaultdict(list)
        for piece in self.slices:
            found[piece.param, piece.kind].append(piece)
        return found

    def _bytes(self, piece: Slice) -> Tensor:
        url = storage.join(self.url, piece.file)
        end = piece.start + 4 * piece.length
        try:
            data = storage.read(url, piece.start, end)
        except StorageError as err:
            if storage.exists(url) and storage.stat(url)[0] >= end:
                raise
            raise CheckpointError(
                f"{url} is missing or cut short. Restore it, or delete {self.url}: an older "
                "checkpoint is gone on from."
            ) from err
        if zlib.crc32(data) != piece.crc32:
            raise CheckpointError(
                f"{url} is damaged at byte {piece.start}: crc32 of {piece.param}. Restore it, or "
                f"delete {self.url}: an older checkpoint is gone on from."
            )
        return torch.frombuffer(bytearray(data), dtype=torch.float32)


def folder(run: str, step: int) -> str:
    """Where the checkpoint after `step` steps lies."""
    return storage.join(run, FOLDER, f"{step:08d}")


def put_slices(url: str, name: str, tensors: Iterable[tuple[str, str, int, Tensor]]) -> list[Slice]:
    """Writes (param, kind, offset, flat fp32 tensor) to one file and says where each lies."""
    table = {
        f"{kind}/{param}": (param, kind, offset, data) for param, kind, offset, data in tensors
    }
    if not table:
        return []
    blob = save({key: data.contiguous() for key, (_, _, _, data) in table.items()})
    storage.write(storage.join(url, name), blob)
    head = struct.unpack("<Q", blob[:8])[0]
    places = json.loads(blob[8 : 8 + head])
    found: list[Slice] = []
    for key, (param, kind, offset, data) in table.items():
        first, last = (8 + head + place for place in places[key]["data_offsets"])
        crc = zlib.crc32(memoryview(blob)[first:last])
        found.append(Slice(param, kind, offset, data.numel(), name, first, crc))
    return found


def commit(
    run: str,
    step: int,
    *,
    recipe: str,
    shapes: Mapping[str, tuple[int, ...]],
    slices: Iterable[Slice],
    extra: Mapping[str, Any],
) -> None:
    """Writes the manifest. From here on the checkpoint exists."""
    rows = [[getattr(piece, name) for name in Slice.__slots__] for piece in slices]
    body = {"format": FORMAT, "step": step, "recipe": recipe, "extra": dict(extra)}
    body |= {"shapes": {name: list(shape) for name, shape in shapes.items()}, "slices": rows}
    storage.write(storage.join(folder(run, step), "manifest.json"), json.dumps(body).encode())


def steps(run: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    places = storage.children(storage.join(run, FOLDER))
    found = [int(place) for place in places if place.isdigit()]
    return [s for s in found if storage.exists(storage.join(folder(run, s), "manifest.json"))]


def open_checkpoint(run: str, step: int | None = None) -> Checkpoint:
    """The checkpoint of a run after `step` steps, or its newest.

    Raises:
        CheckpointError: there is none, or its manifest is not one of ours.
    """
    complete = steps(run)
    if not complete or (step is not None and step not in complete):
        what = "no complete checkpoint" if step is None else f"no complete checkpoint {step}"
        raise CheckpointError(f"{run} has {what}. Complete are: {complete or 'none'}.")
    url = folder(run, complete[-1] if step is None else step)
    try:
        body = json.loads(storage.read(storage.join(url, "manifest.json")))
        if body["format"] != FORMAT:
            raise CheckpointError(f"{url}: format {body['format']}, this Diptych reads {FORMAT}.")
        return Checkpoint(
            url=url,
            step=body["step"],
            recipe=body["recipe"],
            shapes={name: tuple(map(int, shape)) for name, shape in body["shapes"].items()},
            slices=tuple(_slice(*row) for row in body["slices"]),
            extra=body["extra"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise CheckpointError(
            f"{url}/manifest.json is damaged: {err!r}. Restore it, or delete {url}: an older "
            "checkpoint is gone on from."
        ) from err


def _slice(
    param: str, kind: str, offset: int, length: int, file: str, start: int, crc32: int
) -> Slice:
    return Slice(param, kind, int(offset), int(length), str(file), int(start), int(crc32))
