"""The samples of a dataset that are nearest to a text or a picture, and a page that shows them.

E width of the shared space, N samples.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch

from ..data import decode, storage
from ..data.batch import Batch
from ..data.index import Manifest, entries
from ..data.preview import row, thumbnail
from .gallery import ROWS, pictures
from .retrieve import embeddings
from .score import Finished

Side = Literal["image", "text"]


def nearest(
    found: Finished,
    query: Batch,
    asks: Side,
    *,
    finds: Side,
    top: int = 12,
    limit: int | None = None,
    told: Callable[[int], None] = lambda rows: None,
) -> list[tuple[str, float]]:
    """(`shard/key`, cosine) of the samples whose `finds` is nearest to the query, the best first.

    A picture is found once, however many samples show it.

    Args:
        found: a run with towers, and the data that is searched.
        query: a batch of one row; see `gallery.files` and `gallery.sentence`.
        asks: which side of the query asks.
        finds: which side of the samples is compared.
        top: samples to return.
        limit: search the first so many samples.
        told: told of the samples of each batch, for a progress bar.

    Raises:
        RunError: the run's model embeds neither side alone.
    """
    found.task.eval()
    sides = dict(zip(("image", "text"), embeddings(found.task, [query]), strict=True))
    asked_E = sides[asks][0]
    scores = dict[str, float]()
    for batch in found.batches(limit, ROWS):
        sides = dict(zip(("image", "text"), embeddings(found.task, [batch]), strict=True))
        near_B = torch.nan_to_num(sides[finds] @ asked_E, nan=-1.0)
        scores |= zip(batch.keys, near_B.tolist(), strict=True)
        told(batch.rows)
    ordered = sorted(scores.items(), key=lambda one: (-one[1], one[0]))
    if finds == "image":
        same = pictures(found.test, limit)
        seen = dict[Any, tuple[str, float]]()
        for key, score in ordered:
            seen.setdefault(same[key], (key, score))
        ordered = list(seen.values())
    return ordered[:top]


def shown(manifest: Manifest, hits: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """What a page shows of each hit: as `preview.row`, and its score."""
    rows = dict[str, dict[str, Any]]()
    wanted = dict(hits)
    for shard in manifest.shards:
        name = storage.name(shard.url)
        if not any(key.startswith(f"{name}/") for key in wanted):
            continue
        for entry in entries(manifest, shard):
            key = f"{name}/{entry.record.key}"
            if key in wanted:
                rows[key] = {**row(shard, entry), "name": key, "score": wanted[key]}
    return [rows[key] for key, _ in hits]


def page(asked: str, picture: str | None, rows: list[dict[str, Any]], **said: Any) -> str:
    """One self-contained HTML page; `picture` is the file that asked, if one did."""
    image = thumbnail(decode.image(storage.read(picture))[0]) if picture else ""
    return _template().render(asked=asked, image=image, rows=rows, **said)


@functools.cache
def _template() -> jinja2.Template:
    text = Path(__file__).with_name("search.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(text)
