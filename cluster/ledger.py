"""Which samples made which step: told by the plan, and held against what each rank recorded."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from ..data import storage
from ..data.index import LineCache
from ..data.plan import Plan
from ..errors import DataError, RunError
from ..pretrain.checkpoint import claim
from ..pretrain.rundir import RunDir
from . import journal


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


def begin(place: RunDir, start: int, world: int) -> int:
    """Opens an attempt and returns its number, which no other attempt at this run has.

    From here on, older attempts that are still alive somewhere can publish no checkpoint.
    """
    tried = attempts(place)
    number = tried[-1].number + 1 if tried else 1
    while not claim(place.url, number):
        number += 1
    rows = [*tried, Attempt(number, start, world)]
    text = "".join(json.dumps(row._asdict()) + "\n" for row in rows)
    storage.write(place.at("attempts.jsonl"), text.encode())
    return number


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
    found = [LineCache(source.manifest) for source in plan.sources]
    for step in range(first, last):
        world = _owner(tried, step).world
        for rank in range(world):
            for ref in plan.rows(step, rank, world):
                key = found[ref.source].of(ref.shard).entry(ref.position).record.key
                yield Line(step, rank, plan.label(ref), key, ref.epoch)


def verify(place: RunDir, told: list[Line]) -> int:
    """How many (step, rank) slices the ranks recorded just as the plan tells them.

    Raises:
        DataError: a rank trained on something else.
    """
    slices: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for line in told:
        slices[line.step, line.rank].append(f"{line.shard}/{line.key}")
    tried, known, checked = attempts(place), journal.ledger(place), 0
    for (step, rank), keys in slices.items():
        slot = (_owner(tried, step).number, step, rank)
        if slot not in known:
            continue
        if known[slot] != journal.keys_digest(keys):
            raise DataError(
                f"{place.url}: at step {step} rank {rank} trained on other samples than planned."
            )
        checked += 1
    return checked


def _owner(tried: list[Attempt], step: int) -> Attempt:
    """The attempt whose work on a step counts: the last one that came by it."""
    return [each for each in tried if each.start <= step][-1]
