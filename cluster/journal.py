"""What a rank did since the last checkpoint, stored before that checkpoint's manifest.

So whatever kills a run, the steps that it does not repeat are on record: the digest of the keys of
every rank's rows in `ledger/`, and rank 0's metrics rows in `metrics/`.
"""

import json
import zlib
from typing import Any

from ..data import storage
from ..data.batch import Batch
from ..pretrain.rundir import RunDir

Page = tuple[list[tuple[int, int]], list[dict[str, Any]]]
"""([(step, crc32 of the keys)], [metrics row])."""


class Journal:
    """Collects pages; one is turned at each checkpoint."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._page: Page = ([], [])

    def note(self, step: int, batch: Batch) -> None:
        """Records a rank's rows of a step."""
        self._page[0].append((step, keys_digest(batch.keys)))

    def row(self, row: dict[str, Any]) -> None:
        """Records a row of metrics; rank 0's are kept."""
        if self.rank == 0:
            self._page[1].append(row)

    def turn(self) -> Page:
        """The page so far; a new one begins."""
        page, self._page = self._page, ([], [])
        return page


def keys_digest(keys: tuple[str, ...] | list[str]) -> int:
    """crc32 of the `shard/key` names of some rows, in order."""
    return zlib.crc32("\n".join(keys).encode())


def put(run: str, step: int, attempt: int, rank: int, page: Page) -> None:
    """Stores a page of the steps up to `step`."""
    notes, rows = page
    url = storage.join(run, "ledger", f"{step:08d}-{attempt:04d}-{rank}.json")
    storage.write(url, json.dumps(notes).encode())
    if rank == 0:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write(storage.join(run, "metrics", f"{step:08d}.jsonl"), text.encode())


def metrics(place: RunDir, until: int) -> list[dict[str, Any]]:
    """The metrics rows of steps up to `until`, which a checkpoint holds."""
    names = storage.children(place.at("metrics"))
    rows = [row for name in names for row in place.rows(f"metrics/{name}")]
    found = {row["step"]: row for row in rows if row["step"] <= until}
    return [found[step] for step in sorted(found)]


def ledger(place: RunDir) -> dict[tuple[int, int], int]:
    """Digest of the keys that a rank trained on, by (step, rank); the last attempt counts."""
    found: dict[tuple[int, int], int] = {}
    for name in storage.children(place.at("ledger")):  # sorted, so later attempts come later
        rank = int(name.removesuffix(".json").rpartition("-")[2])
        for step, digest in json.loads(storage.read(place.at("ledger", name))):
            found[step, rank] = digest
    return found
