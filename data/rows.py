"""The samples of one shard, decoded batch by batch as an encoder wants them, read ahead.

Memory is bounded: three batches at most are in it, each of which spans a limited part of the shard.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CrcError, ShardError
from . import kept, storage
from .buckets import Buckets
from .cache import Spec, content, used
from .crew import crew
from .decode import sample
from .index import Entry, Lines, Shard
from .records import Record
from .transforms import Frame, cover, frame

_BATCH_BYTES = 64 << 20
"""A batch of samples that lie further apart in their shard is cut."""

_ANY = 1e9
"""By how much an image may be enlarged: which samples are worth it is the plan's to say."""


@dataclass(frozen=True)
class Row:
    """One sample, decoded; or what is wrong with it."""

    key: str
    content: str
    """Hash of what its outputs depend on."""
    image_CHW: np.ndarray | None = None
    text: str | None = None
    """The text; or the JSON record and the image's size, for encoders that read records."""
    fault: str = ""
    kept: dict[str, str] | None = None
    """See `kept.cut`; None, too, where nothing is to be kept."""


def decoded(origin: Shard, lines: Lines, spec: Spec, batch: int) -> Iterator[list[Row]]:
    """Yields the samples of a shard in order; at most two batches wait while a third is used.

    Args:
        origin: the shard.
        lines: its index.
        spec: what of a sample is wanted, and at which size.
        batch: samples of a batch.

    Raises:
        StorageError: the shard cannot be read.
        ReplacedError, CrcError: it is not what was indexed.
    """
    waiting: deque[Future[list[Row]]] = deque()
    with crew(2, "diptych-rows") as pool:
        for part in _batches(lines, batch):
            waiting.append(pool.submit(_read, origin, part, spec))
            if len(waiting) == 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(lines: Lines, batch: int) -> Iterator[list[Entry]]:
    """Neighbours that are read and encoded together: a pure function of the index."""
    part: list[Entry] = []
    for position in range(len(lines)):
        entry = lines.entry(position)
        start = min(one.record.span()[0] for one in [*part[:1], entry])
        if part and (len(part) == batch or entry.record.span()[1] - start > _BATCH_BYTES):
            yield part
            part = []
        part.append(entry)
    if part:
        yield part


def _read(origin: Shard, part: Sequence[Entry], spec: Spec) -> list[Row]:
    """The rows of neighbouring samples, decoded, from one ranged read."""
    spans = [entry.record.span() for entry in part]
    start, end = min(first for first, _ in spans), max(last for _, last in spans)
    data = _span(origin, start, end)
    return [
        _row(origin, entry.record, size, data, start, spec)
        for entry, size in zip(part, _sizes(part, spec), strict=True)
    ]


def _span(origin: Shard, start: int, end: int) -> bytes:
    """Bytes of a shard; from a bucket only if it is still the object which was indexed."""
    etag = None if storage.is_local(origin.url) else origin.etag  # copying a file changes its own
    return storage.read(origin.url, start, end, etag=etag)


def _sizes(part: Sequence[Entry], spec: Spec) -> list[tuple[int, int] | None]:
    """(width, height) of each sample's frame: what a plan with such buckets will ask for."""
    if spec.sizes is None:
        return [None] * len(part)
    table = Buckets(sizes=spec.sizes, enlarge=_ANY)
    shapes_3N = np.array([[entry.width or 1, entry.height or 1, 0] for entry in part]).T
    return [table.size(int(bucket)) for bucket in table.assign(shapes_3N)]


def _row(
    origin: Shard,
    record: Record,
    size: tuple[int, int] | None,
    data: bytes,
    start: int,
    spec: Spec,
) -> Row:
    made = content(spec, record)

    def cut(data: bytes, start: int) -> tuple[dict[str, str] | None, dict[str, Any]]:
        blobs = {
            name: data[member.offset - start : member.offset - start + member.size]
            for name, member in used(spec, record).items()
        }
        beside = kept.cut(record, data, start, origin.url) if kept.wanted(spec) else None
        return beside, sample(record, blobs, shard=origin.url, fit=size, exact=bool(spec.exact))

    beside = None
    try:
        try:
            beside, found = cut(data, start)
        except CrcError:  # damaged on its way, perhaps: one more read will tell
            beside, found = cut(_span(origin, *record.span()), record.span()[0])
        image_CHW = _pixels(found, size, spec) if size else None
        text = _record(found) if "record" in spec.reads else None
        text = _text(found, spec) if spec.text else text
    except CrcError:
        raise  # no row of the bytes that the index names can be made of others
    except (ShardError, ValueError) as err:
        fault = str(err).removeprefix(f"{storage.shown(origin.url)}: ")
        return Row(record.key, made, fault=fault, kept=beside)
    return Row(record.key, made, image_CHW, text, kept=beside)


def _pixels(found: dict[str, Any], size: tuple[int, int], spec: Spec) -> np.ndarray:
    """(3, height, width) uint8, as the loader gives them to a model, or as it cuts them from."""
    if found["image"] is None:
        raise ValueError("it has no image")
    wanted = Frame(width=size[0], height=size[1], exact=bool(spec.exact))
    if spec.whole:
        return cover(found["image"], wanted, size=found["size"])
    return frame(found["image"], wanted, 0, size=found["size"])[0].numpy()


def _record(found: dict[str, Any]) -> str:
    """`{"record": {...}, "size": [width, height]}`: annotations, and what their pixels are of."""
    if not found["fields"]:
        raise ValueError("it has no JSON record")
    return json.dumps({"record": found["fields"], "size": found["size"]})


def _text(found: dict[str, Any], spec: Spec) -> str:
    text = found["text"] if spec.text == "txt" else found["fields"].get(spec.text)
    if not isinstance(text, (str, int, float)):
        raise ValueError(f"it has no text in {spec.text!r}")
    return str(text)
