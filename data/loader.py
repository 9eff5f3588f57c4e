"""Batches of one rank, read ahead of the step that needs them.

Blocks are fetched by a few threads in large ranges, kept while a window needs them, and decoded in
the background; the training thread only takes finished batches.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ShardError
from . import draws, storage
from .batch import Batch
from .decode import sample
from .index import Entry, Manifest, entries
from .plan import Plan, Ref
from .tokens import Text
from .transforms import Frame, frame


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a sample becomes a row."""

    text: str
    """`txt`, or the name of a field of the JSON record."""
    image_size: int
    seed: int
    needs: frozenset[str] = frozenset({"text", "image"})
    """What a sample must have; the rest, where it is missing, is empty text or white."""


class Loader:
    """Iterates the batches of one rank from `start` to `stop`, exactly as the plan says.

    Raises whatever reading or decoding raised, in the training thread, at the batch that needs it.
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
        pin: bool = False,
    ) -> None:
        self.plan, self.text, self.recipe = plan, text, recipe
        self.rank, self.world, self.start, self.stop = rank, world, start, stop
        self.ahead, self.threads, self.pin = ahead, threads, pin

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yields (step, batch)."""
        ready: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(self.ahead)
        over = threading.Event()

        def hand(item: tuple[int, Batch] | BaseException | None) -> None:
            while not over.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for item in self._batches(over):
                    hand(item)
                hand(None)
            except BaseException as err:  # handed over, and raised by the training thread
                hand(err)

        thread = threading.Thread(target=work, name="diptych-loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            over.set()
            thread.join(timeout=10)

    def _batches(self, over: threading.Event) -> Iterator[tuple[int, Batch]]:
        pool = ThreadPoolExecutor(self.threads)
        try:
            blocks = Blocks(self.plan, pool)
            for step in range(self.start, self.stop):
                if over.is_set():
                    return
                soon = self.plan.rows(min(step + self.ahead, self.stop - 1), self.rank, self.world)
                refs = self.plan.rows(step, self.rank, self.world)
                blocks.fetch([*refs, *soon])
                batch = collate(blocks, refs, self.text, self.recipe)
                yield step, batch.pinned() if self.pin else batch
                blocks.forget(refs)
        finally:
            pool.shutdown(cancel_futures=True)  # nobody waits for blocks that nobody will use


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


class Blocks:
    """Blocks in memory: fetched once a window, whole, and dropped when the window is over."""

    def __init__(self, plan: Plan, pool: ThreadPoolExecutor) -> None:
        self.plan, self.pool = plan, pool
        self._bytes: dict[tuple[int, int, int], Future[tuple[int, bytes]]] = {}
        self._entries = Index(plan.manifest)

    def fetch(self, refs: Sequence[Ref]) -> None:
        """Starts reading the blocks of `refs` that are not here yet."""
        for ref in refs:
            if ref[:3] not in self._bytes:
                self._bytes[ref[:3]] = self.pool.submit(self._read, ref.block)

    def sample(self, ref: Ref) -> tuple[str, str, dict[str, Any]]:
        """(shard's name, key, decoded sample) of a visit."""
        shard = self.plan.manifest.shards[ref.shard]
        record = self._entries.of(ref.shard)[ref.position].record
        start, data = self._bytes[ref[:3]].result()
        blobs = {
            extension: data[member.offset - start : member.offset - start + member.size]
            for extension, member in record.members.items()
        }
        return storage.name(shard.url), record.key, sample(record, blobs, shard=shard.url)

    def forget(self, refs: Sequence[Ref]) -> None:
        """Drops the blocks of windows that lie behind all of `refs`."""
        oldest = min(ref[:2] for ref in refs)
        for place in [place for place in self._bytes if place[:2] < oldest]:
            del self._bytes[place]

    def _read(self, number: int) -> tuple[int, bytes]:
        block = self.plan.blocks[number]
        found = self._entries.of(block.shard)[block.first : block.first + block.samples]
        spans = [entry.record.span() for entry in found]
        start, end = min(first for first, _ in spans), max(last for _, last in spans)
        return start, storage.read(self.plan.manifest.shards[block.shard].url, start, end)


class Index:
    """Index lines of the shards in use; a shard's are read when it is first touched."""

    def __init__(self, manifest: Manifest, keep: int = 64) -> None:
        self.manifest, self.keep = manifest, keep
        self._lock = threading.Lock()
        self._found: dict[int, list[Entry]] = {}

    def of(self, shard: int) -> list[Entry]:
        """The entries of a shard."""
        with self._lock:
            if shard not in self._found:
                while len(self._found) >= self.keep:
                    del self._found[next(iter(self._found))]
                self._found[shard] = entries(self.manifest, self.manifest.shards[shard])
            return self._found[shard]


def collate(blocks: Blocks, refs: Sequence[Ref], text: Text, recipe: Recipe) -> Batch:
    """The batch of some visits; blocks must have been fetched."""
    blank = torch.full((3, recipe.image_size, recipe.image_size), 255, dtype=torch.uint8)
    found = [blocks.sample(ref) for ref in refs]
    for ref, (_, key, each) in zip(refs, found, strict=True):
        _require(each, recipe, f"{blocks.plan.manifest.shards[ref.shard].url}: {key}")
    texts = [str(_text(each, recipe) or "") for _, _, each in found]
    tokens_BL, real_BL = text.encode(texts)
    draws_B = [
        draws.row_key(recipe.seed, ref.epoch, shard, key)
        for ref, (shard, key, _) in zip(refs, found, strict=True)
    ]
    square = Frame(width=recipe.image_size, height=recipe.image_size)
    images = [
        blank if each["image"] is None else frame(each["image"], square, 0)[0]
        for _, _, each in found
    ]
    return Batch(
        keys=tuple(f"{shard}/{key}" for shard, key, _ in found),
        draws_B=torch.tensor(draws_B),
        image_BCHW=torch.stack(images),
        tokens_BL=tokens_BL,
        real_BL=real_BL,
        fields=tuple(each["fields"] for _, _, each in found),
    )


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
