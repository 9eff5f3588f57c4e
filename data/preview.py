"""One self-contained HTML page of a dataset: samples, sizes, buckets, and what was left out."""

import base64
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ..errors import ShardError
from . import storage
from .decode import sample
from .index import Entry, Manifest, Shard, entries
from .survey import aspect_chart, left_out, survey, text_chart


def page(
    manifest: Manifest, count: int = 48, bucket_of: Callable[[Entry], str] | None = None
) -> str:
    """The page of `count` samples taken evenly from the whole dataset.

    Args:
        manifest: the dataset.
        count: samples to show; as many ranges are read.
        bucket_of: names the bucket of a sample; without it no buckets are shown.
    """
    places = sorted({i * manifest.samples // count for i in range(count)})
    first, rows = 0, list[dict[str, Any]]()
    for shard in manifest.shards:
        mine = [place - first for place in places if first <= place < first + shard.samples]
        found = entries(manifest, shard) if mine else []
        rows += [_row(shard, found[place], bucket_of) for place in mine]
        first += shard.samples
    seen = survey(manifest, bucket_of)
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


def _row(shard: Shard, entry: Entry, bucket_of: Callable[[Entry], str] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": f"{storage.name(shard.url)}/{entry.record.key}"}
    row["size"] = f"{entry.width} x {entry.height}" if entry.width else ""
    row["bucket"] = bucket_of(entry) if bucket_of else ""
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
    row["image"] = "" if found["image"] is None else _thumbnail(found["image"])
    return row


def _thumbnail(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
