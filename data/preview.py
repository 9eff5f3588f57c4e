"""One self-contained HTML page of samples: image, caption, fields, size."""

import base64
import io
import json
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ..errors import ShardError
from . import storage
from .decode import sample
from .index import Entry, Manifest, Shard, entries

_PAGE = jinja2.Environment(autoescape=True).from_string(
    """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ url }}</title>
<style>
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }
body { margin: 1.5rem; max-width: 90rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; border: 1px solid #8885; border-radius: .4rem }
img { width: 100%; image-rendering: auto } code { font-size: 12px; opacity: .75 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; margin: .3rem 0 0 }
.bad { color: #c33 }
</style>
<h1>{{ url }}</h1>
<p>{{ samples }} samples in {{ shards }} shards, {{ megabytes }} MB,
digest <code>{{ digest }}</code>.
{{ rows | length }} shown, evenly spaced.</p>
<main>{% for row in rows %}<figure>
{% if row.image %}<img src="data:image/webp;base64,{{ row.image }}" alt="">{% endif %}
{% if row.fault %}<p class="bad">{{ row.fault }}</p>{% endif %}
<figcaption>{{ row.text }}<br><code>{{ row.name }} {{ row.size }}</code>
{% if row.fields %}<pre>{{ row.fields }}</pre>{% endif %}</figcaption>
</figure>{% endfor %}</main></html>"""
)


def page(manifest: Manifest, count: int = 48) -> str:
    """The page of `count` samples taken evenly from the whole dataset."""
    places = sorted({i * manifest.samples // count for i in range(count)})
    first, rows = 0, list[dict[str, Any]]()
    for shard in manifest.shards:
        mine = [place - first for place in places if first <= place < first + shard.samples]
        found = entries(manifest, shard) if mine else []
        rows += [_row(shard, found[place]) for place in mine]
        first += shard.samples
    return _PAGE.render(
        url=manifest.url.removesuffix("/index"),
        samples=f"{manifest.samples:,}",
        shards=len(manifest.shards),
        megabytes=f"{manifest.bytes / 1e6:,.1f}",
        digest=manifest.digest,
        rows=rows,
    )


def _row(shard: Shard, entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": f"{storage.name(shard.url)}/{entry.record.key}"}
    row["size"] = f"{entry.width} x {entry.height}" if entry.width else ""
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
