"""A checkpoint: slices of fp32 tensors in safetensors files, one JSON manifest, no pickle.

`checkpoints/<step>/attempt-<n>/rank-<r>.safetensors` hold the slices; `<step>/manifest.json`,
written last and once, says of each which parameter it belongs to and from which element on. Whoever
reads takes the slices it needs, whatever world size or ZeRO stage wrote them. Frozen parameters are
not in it; the digest of their values is, and other values are refused.
"""

import functools
import hashlib
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import digest
from ..data import storage
from ..errors import CheckpointError
from . import slices as form
from .slices import Piece, Slice

FORMAT = 1
FOLDER = "checkpoints"
WEIGHT = "weight"
"""The kind of slice that holds the fp32 master weights."""
EMA = "ema"
"""The kind that holds their moving average; the other kinds are the optimiser's moments."""
_ATTEMPTS = "attempts"
_SEAL = "digest"
_STALE = 16
"""Folders looked at when old ones are deleted; some stores list empty ones for ever."""
_FILE = re.compile(r"(attempt-\d+/)?[\w-]+\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its manifest was there, and so it can be trusted."""

    url: str
    step: int
    recipe: str
    """Digest of the recipe that made it."""
    base: str | None
    """Digest of the parameters that were frozen; None where none was."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the trained parameters."""
    slices: tuple[Slice, ...]
    extra: Mapping[str, Any]
    """What the writer added: world size, attempt, optimiser steps."""

    @property
    def content(self) -> str:
        """16 hex digits that depend on the values that are kept, and on the frozen ones."""
        sums = sorted([s.param, s.kind, s.offset, s.length, s.crc32] for s in self.slices)
        return digest({"slices": sums, "base": self.base})

    @property
    def kinds(self) -> frozenset[str]:
        """What is kept of each parameter: `weight`, moments, and `ema` where the run has one."""
        return frozenset(piece.kind for piece in self.slices)

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Copies into each piece's tensor, on any device, the elements that it names.

        Raises:
            CheckpointError: a parameter is not in it, has holes, or its bytes changed.
        """
        wants: list[form.Want] = []
        for param, kind, offset, into in pieces:
            if param not in self.shapes:
                raise CheckpointError(
                    f"{self.url} has no parameter {param!r}; another model wrote it."
                )
            whole = torch.Size(self.shapes[param]).numel()
            found, filled = form.cover(self._of.get((param, kind), ()), offset, into, whole)
            if filled != into.numel():
                raise CheckpointError(
                    f"{self.url}: {kind} of {param!r} has {filled} of {into.numel()} elements "
                    "without a gap. Delete this checkpoint: an older one is gone on from."
                )
            wants += found
        with torch.no_grad():
            form.read(self.url, wants)

    def read(self, param: str, kind: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Elements [offset, offset + length) of a flattened parameter or moment, fp32.

        Raises:
            CheckpointError: as `fill`.
        """
        whole = torch.Size(self.shapes.get(param, ())).numel()
        into = torch.empty(whole - offset if length is None else length)
        self.fill([(param, kind, offset, into)])
        return into

    def weights(self, kind: str = WEIGHT) -> dict[str, Tensor]:
        """Every trained parameter, whole and in its shape, fp32."""
        found = {name: torch.empty(shape) for name, shape in self.shapes.items()}
        self.fill((name, kind, 0, data.view(-1)) for name, data in found.items())
        return found

    @functools.cached_property
    def _of(self) -> Mapping[tuple[str, str], Sequence[Slice]]:
        found: defaultdict[tuple[str, str], list[Slice]] = defaultdict(list)
        for piece in sorted(self.slices, key=lambda piece: piece.offset):
            found[piece.param, piece.kind].append(piece)
        return found


def base_digest(module: nn.Module) -> str | None:
    """16 hex digits of SHA-256 over the frozen parameters of a module; None if none is frozen.

    So are the parts beside a task that its `frozen` names, such as a first stage. Of a task with
    adapters, that of its model as it was before it had them.
    """
    if (known := getattr(module, "base", None)) is not None:
        return known
    frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    beside: Mapping[str, Any] = getattr(module, "frozen", {})
    hasher = hashlib.sha256()
    for name, part in sorted(beside.items()):
        hasher.update(f"{name} {part.digest()}".encode())
    for name, param in frozen:
        data = param.detach().cpu().contiguous()
        hasher.update(f"{name} {tuple(data.shape)} {data.dtype}".encode())
        hasher.update(form.raw(data))
    return hasher.hexdigest()[:16] if frozen or beside else None


def require_base(checkpoint: Checkpoint, base: str | None) -> None:
    """Holds the frozen parameters here against those that the checkpoint was trained beside.

    Raises:
        CheckpointError: they differ.
    """
    if checkpoint.base != base:
        raise CheckpointError(
            f"{checkpoint.url} was trained beside frozen weights {checkpoint.base or '(none)'}, "
            f"here they are {base or '(none)'}. Start from the same weights, and freeze the same."
        )


def folder(run: str, step: int) -> str:
    """Where the checkpoint after `step` steps lies."""
    return storage.join(run, FOLDER, f"{step:08d}")


def manifest(run: str, step: int) -> str:
    """What makes the checkpoint after `step` steps exist, once it does."""
    return storage.join(folder(run, step), "manifest.json")


def claim(run: str, attempt: int) -> bool:
    """Takes an attempt's number; False if it is taken. Older attempts can publish nothing more."""
    name = uuid.uuid4().hex.encode()  # whose it is, should the request be tried again
    return storage.create(storage.join(run, FOLDER, _ATTEMPTS, f"{attempt:06d}"), name)


def newer(run: str, attempt: int) -> int | None:
    """The newest attempt that began after this one; None if it is the newest itself."""
    claimed = storage.children(storage.join(run, FOLDER, _ATTEMPTS))
    return max((int(n) for n in claimed if n.isdigit() and int(n) > attempt), default=None)


def commit(
    run: str,
    step: int,
    *,
    attempt: int = 0,
    recipe: str,
    base: str | None = None,
    shapes: Mapping[str, tuple[int, ...]],
    slices: Iterable[Slice],
    extra: Mapping[str, Any],
) -> None:
    """Writes the manifest, once, and reads it back. From here on the checkpoint exists.

    If an older attempt had published this step already, its checkpoint stands: it holds the state
    after the same batches.

    Raises:
        CheckpointError: a newer attempt has begun, or the manifest does not read back.
    """
    if latest := newer(run, attempt):
        raise CheckpointError(
            f"attempt {attempt} at {run} may not publish step {step}: attempt {latest} "
            "has begun. This process was given up; it ends."
        )
    rows = [[getattr(piece, name) for name in Slice.__slots__] for piece in slices]
    body = {"format": FORMAT, "step": step, "attempt": attempt, "recipe": recipe, "base": base}
    body |= {"extra": dict(extra), "shapes": {name: list(shape) for name, shape in shapes.items()}}
    data = json.dumps(sealed(body | {"slices": rows})).encode()
    url = manifest(run, step)
    made = storage.create(url, data)
    if storage.read(url) != data and (made or open_checkpoint(run, step).recipe != recipe):
        raise CheckpointError(f"{url} is not what attempt {attempt} wrote. Is there a second run?")


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the digest of the rest of it, by which damage is seen."""
    rest = {name: value for name, value in body.items() if name != _SEAL}
    return rest | {_SEAL: hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:16]}


def retain(run: str, keep: int) -> None:
    """Deletes all but the newest `keep` complete checkpoints, and what never became one."""
    complete = steps(run)
    oldest = complete[-keep:][0] if complete else 0
    stale = [found for found in _steps(run) if found < oldest]
    for step in stale[-_STALE:]:
        storage.delete(manifest(run, step))  # first: it is the promise
        storage.delete(folder(run, step))


def steps(run: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    return [s for s in _steps(run) if storage.exists(manifest(run, s))]


def _steps(run: str) -> list[int]:
    names = storage.children(storage.join(run, FOLDER))
    return sorted(int(name) for name in names if name.isdigit())


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
        if _SEAL in body and body != sealed(body):  # the first ones had none
            raise ValueError("its digest is of something else")
        return Checkpoint(
            url=url,
            step=body["step"],
            recipe=body["recipe"],
            base=body.get("base"),
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
    found = Slice(param, kind, int(offset), int(length), str(file), int(start), int(crc32))
    if not _FILE.fullmatch(found.file) or min(found.offset, found.length, found.start) < 0:
        raise ValueError(f"no slice of ours: {found}")
    return found
