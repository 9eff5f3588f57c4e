"""Batches of one rank, decoded ahead of the step that needs them.

Threads decode straight into the tensors of the batch; the training thread only takes finished
batches.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CrcError, ShardError
from . import draws
from .batch import Batch
from .blocks import Blocks, Raw
from .crew import crew
from .decode import is_image, sample
from .hints import Hints, Wanted
from .holes import Holes
from .index import Manifest
from .join import Joined, stacked
from .plan import Plan, Ref
from .room import ROOM
from .tokens import Text
from .transforms import Frame, Pixels, Placed, placing, put, told
from .urls import shown
from .walk import Walk


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a sample becomes a row."""

    text: str
    """`txt`, or the name of a field of the JSON record."""
    image_size: int
    """Side of the square frame; a plan's buckets have their own sizes."""
    seed: int
    needs: frozenset[str] = frozenset({"text", "image"})
    """What a sample must have; the rest, where it is missing, is empty text or white."""
    pixels: Pixels = field(default_factory=Pixels)
    """How images are resized, cropped and flipped."""
    arrays: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Members `name.npy` that every sample must have, by name: (N, F). Of more than N rows the
    first N are taken."""
    hints: Mapping[str, Wanted] = field(default_factory=dict[str, Wanted])
    """Pictures beside the picture, by name."""
    placed: bool = False
    """Whether the model is told the size of a picture and where it was cut."""

    def without_shards(self, joined: Joined | None) -> bool:
        """Whether caches have all that a row needs, so that no shard of the data is read."""
        own = bool(self.arrays) or any(not one.urls for one in self.hints.values())
        return joined is not None and joined.kept and not own


@dataclass(frozen=True)
class Row:
    """One decoded row; its image is in the batch's tensor already."""

    key: str
    draw: int
    text: str
    fields: dict[str, Any]
    hole: bool = False
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    hints: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    cached: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    """Of the caches that are joined."""
    source: int = 0
    placed: tuple[float, ...] | None = None
    """See `Batch.placed_B6`."""


class Loader:
    """Iterates the batches of one rank from `start` to `stop`, exactly as the plan says.

    Raises whatever reading or decoding raised, in the training thread, at the batch that needs it.

    Args:
        plan: which samples make which step.
        text: the tokenizer.
        recipe: how a sample becomes a row.
        rank: of `world` workers, whose slice is loaded.
        world: number of workers.
        start: first step.
        stop: the step to end before.
        ahead: batches begun before they are asked for.
        threads: that decode.
        memory: bytes of shards to hold, about.
        pin: hand over batches in page-locked memory, from which a GPU copies by itself.
        holes: what is left out; by default a damaged sample is an error.
        joined: caches of encoder outputs. Where one stands for the images, none is decoded.
    """

    def __init__(
        self,
        plan: Plan,
        text: Text,
        recipe: Recipe,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int,
        ahead: int = 4,
        threads: int = 2,
        memory: int = 256 << 20,
        pin: bool = False,
        holes: Holes | None = None,
        joined: Joined | None = None,
    ) -> None:
        self.joined = joined
        if joined and joined.images:
            recipe = replace(recipe, needs=recipe.needs - {"image"})
        self.plan, self.text, self.recipe = plan, text, recipe
        self.rank, self.world, self.start, self.stop = rank, world, start, stop
        self.ahead, self.threads, self.memory, self.pin = ahead, threads, memory, pin
        self.holes = holes or Holes(plan)
        self.hints = Hints(plan, recipe.hints)
        self.apart = recipe.without_shards(joined)
        self._weight_S = _weights(plan)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yields (step, batch)."""
        with crew(self.threads, "diptych-decode") as pool:

            def begin(blocks: Blocks, step: int, refs: Sequence[Ref]) -> Callable[[], Batch]:
                return self._begin(pool, blocks, step, refs)

            walk = Walk(
                plan=self.plan,
                begin=begin,
                start=self.start,
                stop=self.stop,
                rank=self.rank,
                world=self.world,
                ahead=self.ahead,
                memory=self.memory,
                beside=self.joined.plans if self.joined else (),
                apart=self.apart,
            )
            yield from walk

    def _begin(
        self, pool: ThreadPoolExecutor, blocks: Blocks, step: int, refs: Sequence[Ref]
    ) -> Callable[[], Batch]:
        width, height = self.plan.buckets.size(self.plan.bucket(step)) or (
            self.recipe.image_size,
            self.recipe.image_size,
        )
        wanted = Frame(width=width, height=height, **dict(self.recipe.pixels))
        pixels = ROOM.lend(len(refs) * 3 * height * width)
        image_BCHW = torch.from_numpy(pixels).view(len(refs), 3, height, width)
        share = math.ceil(len(refs) / self.threads)
        parts: list[Future[list[Row]]] = [
            pool.submit(self._rows, blocks, refs[i : i + share], wanted, image_BCHW[i : i + share])
            for i in range(0, len(refs), share)
        ]
        return lambda: self._batch([row for part in parts for row in part.result()], image_BCHW)

    def _rows(
        self, blocks: Blocks, refs: Sequence[Ref], wanted: Frame, image_BCHW: Tensor
    ) -> list[Row]:
        # The tensor holds the lent memory, which a NumPy view of it would not. Rows are cut by
        # NumPy, because every single tensor's way to an array costs 10 to 35 us.
        return [
            self._row(blocks, ref, wanted, image_CHW)
            for ref, image_CHW in zip(refs, image_BCHW.numpy(), strict=True)
        ]

    def _row(self, blocks: Blocks, ref: Ref, wanted: Frame, image_CHW: np.ndarray) -> Row:
        raw = None if self.apart else blocks.raw(ref)
        record = raw.record if raw else blocks.record(ref)
        shard, key = self.plan.label(ref), record.key
        draw = draws.row_key(self.recipe.seed, ref.epoch, shard, key)
        hole = Row(f"{shard}/{key}", draw, "", {}, hole=True, source=ref.source)
        if self.holes.reason(ref, key) is not None:
            image_CHW.fill(255)
            return hole
        try:
            cached, kept = self.joined.row(blocks, ref, record) if self.joined else ({}, None)
            if raw is None:
                raw = blocks.raw(ref) if kept is None else Raw(blocks.url(ref), record, kept)
            found = self._decoded(blocks, ref, raw, wanted)
            _require(found, self.recipe, f"{shown(raw.shard)}: {key}")
            arrays = _arrays(found, self.recipe, f"{shown(raw.shard)}: {key}")
            placed = self._put_image(blocks, ref, found, wanted, draw, image_CHW)
            hints = self.hints.of(blocks, ref, found, wanted, placed) if placed else {}
        except ShardError as fault:
            self.holes.admit(ref, key, record.span()[0], fault)
            image_CHW.fill(255)
            return hole
        text = str(_text(found, self.recipe) or "")
        return Row(
            f"{shard}/{key}",
            draw,
            text,
            found["fields"],
            arrays=arrays,
            hints=hints,
            cached=cached,
            source=ref.source,
            placed=told(placed, wanted) if placed and self.recipe.placed else None,
        )

    def _put_image(
        self,
        blocks: Blocks,
        ref: Ref,
        found: dict[str, Any],
        wanted: Frame,
        draw: int,
        image_CHW: np.ndarray,
    ) -> Placed | None:
        """Writes the picture, white where there is none; returns where it was cut.

        One that a cache stands for is cut there, too, since the cache's was.
        """
        if found["image"] is None:
            image_CHW.fill(255)
            entry = blocks.entry(ref)
            if self.joined is None or not self.joined.images or not entry.width:
                return None
            return placing((entry.width, entry.height or 1), wanted, draw)
        return put(found["image"], wanted, draw, image_CHW, size=found["size"])

    def _decoded(self, blocks: Blocks, ref: Ref, raw: Raw, wanted: Frame) -> dict[str, Any]:
        def decoded(raw: Raw) -> dict[str, Any]:
            blobs = raw.blobs
            if self.joined and self.joined.images:
                blobs = {name: blob for name, blob in blobs.items() if not is_image(name)}
            fit, exact = wanted.fit, wanted.exact
            return sample(raw.record, blobs, shard=raw.shard, fit=fit, exact=exact)

        try:
            return decoded(raw)
        except CrcError:  # damaged on its way, perhaps: one more read will tell
            return decoded(blocks.again(ref))

    def _batch(self, rows: list[Row], image_BCHW: Tensor) -> Batch:
        tokens_BL, real_BL = self.text.encode([row.text for row in rows])
        if self.plan.buckets.lengths:  # short texts came together so that padding can go
            longest = max(1, int(real_BL.sum(1).max()))
            tokens_BL, real_BL = tokens_BL[:, :longest], real_BL[:, :longest]
        holes = [row.hole for row in rows]
        cached = stacked([row.cached for row in rows])
        source_B = (
            torch.tensor([row.source for row in rows]) if self._weight_S is not None else None
        )
        batch = Batch(
            keys=tuple(row.key for row in rows),
            draws_B=torch.tensor([row.draw for row in rows]),
            image_BCHW=image_BCHW,
            tokens_BL=tokens_BL,
            real_BL=real_BL,
            fields=tuple(row.fields for row in rows),
            texts=tuple(row.text for row in rows),
            hole_B=torch.tensor(holes) if any(holes) else None,
            placed_B6=_placed(rows) if self.recipe.placed else None,
            source_B=source_B,
            weight_B=None if self._weight_S is None else self._weight_S[source_B],
            arrays={
                **{name: _stack(rows, name, s) for name, s in self.recipe.arrays.items()},
                **cached,
            },
            hints={
                name: _pictures(rows, name, (one.channels, *image_BCHW.shape[2:]))
                for name, one in self.recipe.hints.items()
            },
        )
        return batch.pinned() if self.pin else batch


def once(
    manifest: Manifest, text: Text, recipe: Recipe, *, batch: int = 256, limit: int | None = None
) -> Iterator[Batch]:
    """Yields every sample of a dataset once, in order; the last batch is short.

    Args:
        manifest: the dataset.
        text: its tokenizer.
        recipe: how a sample becomes a row.
        batch: rows of a batch.
        limit: stop after as many samples.
    """
    total = min(manifest.samples, limit or manifest.samples)
    batch = min(batch, total)
    plan = Plan(manifest, recipe.seed, batch, shuffle=False)
    for step, found in Loader(plan, text, recipe, stop=-(-total // batch)):
        yield found.take(0, min(batch, total - step * batch))


def _text(found: dict[str, Any], recipe: Recipe) -> Any:
    return found["text"] if recipe.text == "txt" else found["fields"].get(recipe.text)


def _require(found: dict[str, Any], recipe: Recipe, where: str) -> None:
    """Refuses a sample without what the recipe needs: it would be trained on as empty or white.

    Raises:
        ShardError: no image, or no text (a string or a number) where the recipe looks for it.
    """
    if "image" in recipe.needs and found["image"] is None:
        raise ShardError(
            f"{where} has no image (jpg, png or webp). Pack it with one, or leave the sample out."
        )
    text = _text(found, recipe)
    if "text" in recipe.needs and not isinstance(text, (str, int, float)):
        there = [*(["txt"] if found["text"] is not None else []), *sorted(found["fields"])]
        what = "is missing" if text is None else f"is a {type(text).__name__}, not text"
        raise ShardError(
            f"{where}: {recipe.text!r}, which the recipe's data.text names, {what}. It has: "
            f"{', '.join(there) or 'no text at all'}. Use --set data.text=... for one of them."
        )


def _arrays(found: dict[str, Any], recipe: Recipe, where: str) -> dict[str, np.ndarray]:
    """The arrays that the recipe asks for, float32, each of at most its number of rows.

    Raises:
        ShardError: one is missing, is no table of numbers of that width, or is not finite.
    """
    taken: dict[str, np.ndarray] = {}
    for name, (rows, width) in recipe.arrays.items():
        array = found["arrays"].get(name)
        if array is None:
            raise ShardError(
                f"{where} has no {name}.npy, which the recipe asks for. It has: "
                f"{', '.join(sorted(found['arrays'])) or 'no arrays'}."
            )
        if array.ndim != 2 or array.shape[1] != width or array.dtype.kind not in "fiu":
            raise ShardError(
                f"{where}: {name}.npy is {array.dtype} of shape {array.shape}; the recipe asks for "
                f"numbers of shape (N, {width})."
            )
        taken[name] = array[:rows].astype(np.float32)
        if not np.isfinite(taken[name]).all():
            raise ShardError(f"{where}: {name}.npy holds values that are not finite.")
    return taken


def _weights(plan: Plan) -> Tensor | None:
    """What a row of each source is multiplied by in the loss: what the source counts, over its
    share of the rows. None where no source says."""
    if all(source.loss is None for source in plan.sources):
        return None
    counts = [1.0 if source.loss is None else source.loss for source in plan.sources]
    shares = plan.mix.slots / plan.mix.slots.sum()
    return torch.tensor([c / s for c, s in zip(counts, shares.tolist(), strict=True)])


def _stack(rows: Sequence[Row], name: str, shape: tuple[int, int]) -> Tensor:
    """(B, N, F): one array of every row, zeros below its last row and for holes."""
    table_BNF = torch.zeros(len(rows), *shape)
    for place, row in enumerate(rows):
        if not row.hole:
            table_BNF[place, : len(row.arrays[name])] = torch.from_numpy(row.arrays[name])
    return table_BNF


def _placed(rows: Sequence[Row]) -> Tensor:
    """(B, 6): where each row was cut from; zeros where there is no picture."""
    return torch.tensor([row.placed or (0.0,) * 6 for row in rows], dtype=torch.float32)


def _pictures(rows: Sequence[Row], name: str, shape: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) uint8: one picture beside the picture of every row, zeros for holes."""
    drawn_BCHW = np.zeros((len(rows), *shape), np.uint8)
    for place, row in enumerate(rows):
        if name in row.hints:
            drawn_BCHW[place] = row.hints[name]
    return torch.from_numpy(drawn_BCHW)
