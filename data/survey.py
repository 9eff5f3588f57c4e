"""What a preview says about a dataset as a whole: histograms, buckets, and lists of what is out."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import StorageError
from . import storage
from .buckets import Buckets
from .holes import QUARANTINE
from .index import Manifest, open_lines
from .pack import SKIPPED

SHARDS = 32
"""Shards whose index is read for the histograms."""
_SHOWN = 50
_WIDTH, _HEIGHT, _TOP, _FLOOR = 412, 120, 24, 150  # of the drawing, in its own units


@dataclass
class Survey:
    """Counts over the samples of evenly spaced shards."""

    samples: int = 0
    shards: int = 0
    aspects: list[float] = field(default_factory=list[float])
    """Width by height of the samples that have a picture."""
    texts: list[int] = field(default_factory=list[int])
    """Characters of the captions that are there."""
    buckets: Counter[str] = field(default_factory=Counter[str])


def survey(manifest: Manifest, buckets: Buckets | None = None) -> Survey:
    """Reads the index of at most `SHARDS` shards, evenly spaced."""
    found = Survey(shards=min(SHARDS, len(manifest.shards)))
    for number in range(found.shards):
        shard = manifest.shards[number * len(manifest.shards) // found.shards]
        shapes_3N = open_lines(manifest, shard).shapes(0, shard.samples)
        width_N, height_N, chars_N = shapes_3N
        imaged_N = (width_N > 0) & (height_N > 0)
        found.samples += shard.samples
        found.aspects += (width_N[imaged_N] / height_N[imaged_N]).tolist()
        found.texts += chars_N[chars_N > 0].tolist()
        if buckets:
            found.buckets.update(bucket_names(buckets, shapes_3N))
    return found


def bucket_names(buckets: Buckets, shapes_3N: np.ndarray) -> list[str]:
    """The bucket of each sample as its table names it, `none` where none fits."""
    return [buckets.name(one) if one >= 0 else "none" for one in buckets.assign(shapes_3N).tolist()]


def aspect_chart(aspects: Sequence[float]) -> dict[str, Any]:
    """Bars of half octaves' thirds from 1:4 to 4:1, one beyond each end."""
    edges = [2 ** (step / 6 - 2) for step in range(25)]
    ticks = {0: "1:4", 6: "1:2", 12: "1:1", 18: "2:1", 24: "4:1"}
    names = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    labels = ["below 0.25", *names, "4 and above"]
    # A square's ratio is an edge; it counts as the first of the bar that begins there.
    places = [sum(ratio >= edge - 1e-9 for edge in edges) for ratio in aspects]
    return _chart(
        "Width : height", places, labels, {place + 1: tick for place, tick in ticks.items()}
    )


def text_chart(lengths: Sequence[int]) -> dict[str, Any]:
    """Twenty equal bars that hold all captions but the longest one in a hundred, one beyond."""
    most = sorted(lengths)[math.ceil(len(lengths) * 0.99) - 1] if lengths else 20
    rounds = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    step = next(step for step in rounds if 20 * step > most)
    labels = [f"{place * step} to {place * step + step - 1}" for place in range(20)]
    ticks = {place: str(place * step) for place in range(0, 21, 5)}
    places = [min(20, length // step) for length in lengths]
    return _chart("Characters of the caption", places, [*labels, f"{20 * step} and above"], ticks)


def _chart(
    title: str, places: Iterable[int], labels: Sequence[str], ticks: dict[int, str]
) -> dict[str, Any]:
    counts = Counter(places)
    highest, wide = max(counts.values(), default=1), _WIDTH / len(labels)
    bars: list[dict[str, Any]] = []
    for place, label in enumerate(labels):
        height = round(_HEIGHT * counts[place] / highest, 2)
        if counts[place]:
            height = max(1.0, height)  # one sample of a million is still to be seen
        bar = {"x": round(4 + place * wide, 2), "width": round(wide - 1, 2), "height": height}
        bar |= {"y": round(_FLOOR - height, 2)}
        bars.append({**bar, "label": label, "count": counts[place], "tick": ticks.get(place, "")})
    return {"title": title, "bars": bars}


def left_out(manifest: Manifest) -> list[dict[str, Any]]:
    """What `pack` skipped, and what is quarantined, by reason."""
    beside = storage.parent(manifest.shards[0].url)
    skipped = storage.join(beside, SKIPPED)
    quarantine = storage.join(manifest.url, QUARANTINE)
    return [
        _listed("Skipped by pack", skipped, ("input", "reason", "detail")),
        _listed("Quarantined", quarantine, ("shard", "key", "offset", "reason")),
    ]


def _listed(title: str, place: str, columns: tuple[str, ...]) -> dict[str, Any]:
    reasons, first = Counter[str](), list[list[str]]()
    none = f"None: {storage.name(place)} is not there or empty."
    try:
        there = storage.exists(place)
    except StorageError as err:  # by a server that has signed for the tars alone, for one
        there, none = False, f"Not known: {err}"
    if there:
        with storage.open_read(place) as file, storage.explained(place):
            for line in file:
                row = _row(line)
                reasons[str(row.get("reason"))] += 1
                if len(first) < _SHOWN:
                    first.append([str(row.get(column, "")) for column in columns])
    found = {"title": title, "none": none, "total": reasons.total()}
    return found | {"reasons": reasons.most_common(), "first": first}


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    unreadable = {"reason": "unreadable line", "detail": line[:200].decode(errors="replace")}
    return row if isinstance(row, dict) else unreadable
