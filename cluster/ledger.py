"""Which samples made which step: told by the plan, and held against what each rank recorded."""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..data import storage
from ..data.loader import Index
from ..data.plan import Plan
from ..errors import DataError, RunError
from ..pretrain.rundir import RunDir


class Line(NamedTuple):
    """One sample of one step."""

    step: int
    rank: int
    shard: str
    key: str
    epoch: int


class Attempt(NamedTuple):
    """A stretch of steps by one group of workers."""

    number: int
    start: int
    world: int


class Book:
    """Collects what ranks record, and puts it into the run's folder in pieces."""

    def __init__(self, place: RunDir) -> None:
        self.place = place
        self.attempt = 0
        self._notes: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)

    def begin(self, attempt: Attempt) -> None:
        """Opens the page of an attempt."""
        rows = [*self.place.rows("attempts.jsonl"), attempt._asdict()]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write(self.place.at("attempts.jsonl"), text.encode())
        self.attempt = len(rows)
        self._notes.clear()

    def note(self, rank: int, body: dict[str, Any]) -> None:
        """Adds a rank's record of one step."""
        self._notes[rank].append((body["step"], body["crc32"]))

    def flush(self) -> None:
        """Writes what has come since the last time."""
        for rank, notes in self._notes.items():
            if notes:
                name = f"{self.attempt:04d}-{notes[0][0]:08d}-{notes[-1][0]:08d}-{rank}.json"
                storage.write(self.place.at("ledger", name), json.dumps(notes).encode())
                notes.clear()


def attempts(place: RunDir) -> list[Attempt]:
    """The attempts of a run, in order."""
    return [
        Attempt(row["number"], row["start"], row["world"]) for row in place.rows("attempts.jsonl")
    ]


def lines(place: RunDir, plan: Plan, first: int, last: int) -> Iterator[Line]:
    """Every sample of steps [first, last), as the plan deals them to the ranks that there were.

    Raises:
        RunError: the run never began.
    """
    tried = attempts(place)
    if not tried:
        raise RunError(f"{place.url} has not trained yet; there is nothing in its ledger.")
    found = Index(plan.manifest)
    for step in range(first, last):
        world = [each.world for each in tried if each.start <= step][-1]
        for rank in range(world):
            for ref in plan.rows(step, rank, world):
                shard = storage.name(plan.manifest.shards[ref.shard].url)
                key = found.of(ref.shard)[ref.position].record.key
                yield Line(step, rank, shard, key, ref.epoch)


def recorded(place: RunDir) -> dict[tuple[int, int], int]:
    """crc32 of the keys that a rank trained on, by (step, rank); the last attempt counts."""
    found: dict[tuple[int, int], int] = {}
    for name in storage.children(place.at("ledger")):  # sorted, so later attempts come later
        rank = int(name.removesuffix(".json").rpartition("-")[2])
        for step, crc in json.loads(storage.read(place.at("ledger", name))):
            found[step, rank] = crc
    return found


def verify(place: RunDir, told: list[Line]) -> int:
    """How many (step, rank) slices the ranks recorded just as the plan tells them.

    Raises:
        DataError: a rank trained on something else.
    """
    slices: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for line in told:
        slices[line.step, line.rank].append(f"{line.shard}/{line.key}")
    known, checked = recorded(place), 0
    for (step, rank), keys in slices.items():
        if (step, rank) not in known:
            continue
        if known[step, rank] != zlib.crc32("\n".join(keys).encode()):
            raise DataError(
                f"{place.url}: at step {step} rank {rank} trained on other samples than planned."
            )
        checked += 1
    return checked
