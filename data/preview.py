"""One self-contained HTML page of a dataset: samples, sizes, buckets, and what was left out."""

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ..errors import ShardError
from . import storage
from .buckets import Buckets
from .decode import sample
from .index import Entry, Manifest, Shard, entries
from .survey import aspect_chart, bucket_names, left_out, survey, text_chart


def page(manifest: Manifest, count: int = 48, buckets: Buckets | None = None) -> str:
    """The page of `count` samples taken evenly from the whole dataset.

    Args:
        manifest: the dataset.
        count: samples to show; as many ranges are read.
        buckets: a table of buckets to sort the samples into; without it none are shown.
    """
    places = sorted({i * manifest.samples // count for i in range(count)})
    first, rows = 0, list[dict[str, Any]]()
    for shard in manifest.shards:
        mine = [place - first for place in places if first <= place < first + shard.samples]
        found = entries(manifest, shard) if mine else []
        rows += [row(shard, found[place], buckets) for place in mine]
        first += shard.samples
    seen = survey(manifest, buckets)
    return _template().render(
        url=manifest.url.removesuffix("/index"),
        samples=f"{manifest.samples:,}",
        shards=len(manifest.shards),
        megabytes=f"{manifest.bytes / 1e6:,.1f}",
        digest=manifest.digest,
        rows=rows,
        lists=left_out(manifest),
        surveyed=f"{seen.samples:,}",
        surveyed_shards=seen.shards,
        unsized=seen.samples - len(seen.aspects),
        untexted=seen.samples - len(seen.texts),
        charts=[aspect_chart(seen.aspects), text_chart(seen.texts)],
        buckets=seen.buckets.most_common(),
    )


@functools.cache
def _template() -> jinja2.Template:
    text = Path(__file__).with_name("preview.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(text)


def row(shard: Shard, entry: Entry, buckets: Buckets | None = None) -> dict[str, Any]:
    """What a page shows of one sample: `name`, `text`, `image` in base64, or its `fault`."""
    row: dict[str, Any] = {"name": f"{storage.name(shard.url)}/{entry.record.key}"}
    row["size"] = f"{entry.width} x {entry.height}" if entry.width else ""
    if buckets:
        shape = [[entry.width or 0], [entry.height or 0], [entry.text_chars]]
        (row["bucket"],) = bucket_names(buckets, np.array(shape))
    start, end = entry.record.span()
    data = storage.read(shard.url, start, end)
    blobs = {
        extension: data[member.offset - start : member.offset - start + member.size]
        for extension, member in entry.record.members.items()
    }
    try:
        found = sample(entry.record, blobs, shard=shard.url)
    except ShardError as err:
        return {**row, "fault": str(err)}
    row["text"] = found["text"] or ""
    row["fields"] = json.dumps(found["fields"], ensure_ascii=False) if found["fields"] else ""
    row["image"] = "" if found["image"] is None else thumbnail(found["image"])
    return row


def thumbnail(pixels: np.ndarray) -> str:
    """A small WebP of (H, W, 3) uint8 pixels in base64, for a page."""
    image = Image.fromarray(pixels)
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
