"""What a rank did since the last checkpoint, stored before that checkpoint's manifest.

So whatever kills a run, the steps that it does not repeat are on record: the digest of the keys of
every rank's rows in `ledger/`, and rank 0's metrics rows in `metrics/`.
"""

import json
import zlib
from typing import Any, NamedTuple

from ..data import storage
from ..data.batch import Batch
from ..data.holes import Hole, Holes
from ..pretrain.rundir import RunDir


class Page(NamedTuple):
    """What one rank has to tell of the steps between two checkpoints."""

    notes: list[tuple[int, int]]
    """(step, crc32 of the keys)."""
    rows: list[dict[str, Any]]
    """Metrics; rank 0's."""
    holes: list[Hole]
    """Samples that were left out, damaged."""


class Journal:
    """Collects pages; one is turned at each checkpoint."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.holes: Holes | None = None
        self._page = Page([], [], [])

    def note(self, step: int, batch: Batch) -> None:
        """Records a rank's rows of a step."""
        self._page.notes.append((step, keys_digest(batch.keys)))

    def row(self, row: dict[str, Any]) -> None:
        """Records a row of metrics; rank 0's are kept."""
        if self.rank == 0:
            self._page.rows.append(row)

    def turn(self) -> Page:
        """The page so far; a new one begins."""
        page, self._page = self._page, Page([], [], [])
        return page._replace(holes=self.holes.turn()) if self.holes else page


def keys_digest(keys: tuple[str, ...] | list[str]) -> int:
    """crc32 of the `shard/key` names of some rows, in order."""
    return zlib.crc32("\n".join(keys).encode())


def put(run: str, step: int, attempt: int, rank: int, page: Page) -> None:
    """Stores a page of the steps up to `step`."""
    name = f"{step:08d}-{attempt:04d}-{rank}.json"
    storage.write(storage.join(run, "ledger", name), json.dumps(page.notes).encode())
    if page.holes:
        found = [hole._asdict() for hole in page.holes]
        storage.write(storage.join(run, "holes", name), json.dumps(found).encode())
    if rank == 0:
        text = "".join(json.dumps(row) + "\n" for row in page.rows)
        name = f"{step:08d}-{attempt:04d}.jsonl"
        storage.write(storage.join(run, "metrics", name), text.encode())


def metrics(
    place: RunDir, until: int, pages: dict[str, list[dict[str, Any]]] | None = None
) -> list[dict[str, Any]]:
    """The metrics rows of steps up to `until`, which a checkpoint holds.

    Args:
        place: the run.
        until: the checkpoint's step.
        pages: those that were read before, by name; those that are read now are added.
    """
    pages = {} if pages is None else pages
    names = sorted(storage.children(place.at("metrics")), key=_attempt)
    # A page of a later step may be of an attempt that still writes: it is read again.
    fresh = [name for name in names if name not in pages or int(name.partition("-")[0]) > until]
    pages |= {name: place.rows(f"metrics/{name}") for name in fresh}
    rows = [row for name in names for row in pages[name]]
    found = {row["step"]: row for row in rows if row["step"] <= until}
    return [found[step] for step in sorted(found)]


def holes(place: RunDir, until: int | None = None) -> list[Hole]:
    """The damaged samples that steps up to `until` left out; a sample comes once."""
    names = storage.children(place.at("holes"))
    kept = [name for name in names if until is None or int(name.partition("-")[0]) <= until]
    rows = [row for name in kept for row in json.loads(storage.read(place.at("holes", name)))]
    return list({(row["shard"], row["key"]): Hole(**row) for row in rows}.values())


def met(run: str, step: int, attempt: int) -> list[Hole]:
    """The damaged samples on all ranks' pages of one checkpoint."""
    folder, mine = storage.join(run, "holes"), f"{step:08d}-{attempt:04d}-"
    names = [name for name in storage.children(folder) if name.startswith(mine)]
    return [Hole(**row) for n in names for row in json.loads(storage.read(f"{folder}/{n}"))]


def ledger(place: RunDir) -> dict[tuple[int, int, int], int]:
    """Digest of the keys that a rank trained on, by (attempt, step, rank)."""
    found: dict[tuple[int, int, int], int] = {}
    for name in storage.children(place.at("ledger")):
        rank = int(name.removesuffix(".json").rpartition("-")[2])
        for step, digest in json.loads(storage.read(place.at("ledger", name))):
            found[_attempt(name), step, rank] = digest
    return found


def _attempt(name: str) -> int:
    """Which attempt wrote a page; the last one to come by a step counts."""
    return int(name.partition(".")[0].split("-")[1])
