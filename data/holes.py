"""Samples that are left out, on record: quarantined by name, or damaged within a budget.

A hole keeps its place in its batch and trains nothing, so the plan, the ledger and every other row
stay what they were.
"""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from ..config import Record
from ..errors import DataError, ShardError
from . import records, storage
from .index import Manifest, Shard, open_lines
from .plan import Plan, Ref, Source

QUARANTINE = "quarantine.jsonl"


class Budget(Record):
    """How many damaged samples a run steps over before it stops; rounded down."""

    shard: float = Field(default=0.05, ge=0, le=1)
    """Share of one shard's samples."""
    source: float = Field(default=0.001, ge=0, le=1)
    """Share of one source's samples."""


class Hole(NamedTuple):
    """One sample that was left out."""

    shard: str
    """Name of the shard, as the ledger has it."""
    key: str
    offset: int
    """First byte of the sample in its shard."""
    reason: str


class Holes:
    """What is left out of one rank's batches; `found` collects what this process has met.

    The budget is the whole run's: `count` tells of what earlier attempts and other ranks have met.

    Args:
        plan: the plan of the run.
        budget: None lets nothing pass.
        known: holes of earlier attempts at the run; they count against the budget.

    Raises:
        DataError: a report, when those pass the budget of a shard or a source.
    """

    def __init__(
        self, plan: Plan, budget: Budget | None = None, known: Sequence[Hole] = ()
    ) -> None:
        self.plan, self.budget = plan, budget or Budget(shard=0, source=0)
        self.quarantined = {
            (number, hole.shard, hole.key): hole.reason
            for number, source in enumerate(plan.sources)
            for hole in quarantined(source.manifest)
        }
        self.found: list[Hole] = []
        self._lock = threading.Lock()
        self._met: dict[tuple[str, str], Hole] = {}
        self.count(known)

    def reason(self, ref: Ref, key: str) -> str | None:
        """Why a sample is in quarantine; None if it is not."""
        if not self.quarantined:
            return None
        name = storage.name(self.plan.sources[ref.source].manifest.shards[ref.shard].url)
        return self.quarantined.get((ref.source, name, key))

    def reasons(self) -> dict[str, str]:
        """Why samples are left out, by `shard/key` as batches have it."""
        named = {
            f"{self.plan.sources[number].label(shard)}/{key}": f"in quarantine: {reason}"
            for (number, shard, key), reason in self.quarantined.items()
        }
        with self._lock:
            return {f"{hole.shard}/{hole.key}": hole.reason for hole in self._met.values()} | named

    def admit(self, ref: Ref, key: str, offset: int, fault: ShardError) -> None:
        """Puts a damaged sample on record and lets the run go on.

        Raises:
            ShardError: the fault itself, where the budget allows none.
            DataError: a report, when the budget of the shard or the source is passed.
        """
        hole = Hole(self.plan.label(ref), key, offset, str(fault))
        with self._lock:
            if (hole.shard, hole.key) in self._met:
                return
            self._met[hole.shard, hole.key] = hole
            self.found.append(hole)
            self._require(ref, fault)

    def count(self, others: Sequence[Hole]) -> None:
        """Counts what others have met, too; a sample counts once, whoever met it.

        Raises:
            DataError: a report, when the budget of a shard or a source is passed.
        """
        with self._lock:
            for hole in others:
                self._met.setdefault((hole.shard, hole.key), hole)
            met = Counter(hole.shard for hole in self._met.values())
            for source in self.plan.sources if met else ():
                self._require_source(source, met)

    def turn(self) -> list[Hole]:
        """The holes found since the last call."""
        with self._lock:
            found, self.found = self.found, []
        return found

    def _require(self, ref: Ref, fault: ShardError) -> None:
        source = self.plan.sources[ref.source]
        label = self.plan.label(ref)
        shard = source.manifest.shards[ref.shard]
        prefix = f"{source.name}/" if source.name else ""
        counts = {
            label: (
                sum(hole.shard == label for hole in self._met.values()),
                math.floor(self.budget.shard * shard.samples),
            ),
            source.manifest.url: (
                sum(hole.shard.startswith(prefix) for hole in self._met.values()),
                math.floor(self.budget.source * source.manifest.samples),
            ),
        }
        if any(not allowed for _, allowed in counts.values()):
            raise fault
        for where, (met, allowed) in counts.items():
            if met > allowed:
                raise DataError(self._report(where, met, allowed)) from fault

    def _require_source(self, source: Source, met: Mapping[str, int]) -> None:
        """Holds the damaged samples of each shard, by its label, against the budgets."""
        total = 0
        for shard in source.manifest.shards:
            label = source.label(shard.url)
            here, allowed = met.get(label, 0), math.floor(self.budget.shard * shard.samples)
            total += here
            if here > allowed:
                raise DataError(self._report(label, here, allowed))
        allowed = math.floor(self.budget.source * source.manifest.samples)
        if total > allowed:
            raise DataError(self._report(source.manifest.url, total, allowed))

    def _report(self, where: str, met: int, allowed: int) -> str:
        shards = Counter(hole.shard for hole in self._met.values()).most_common(3)
        worst = ", ".join(f"{name} ({count})" for name, count in shards)
        last = list(self._met.values())[-1]
        return (
            f"{where}: {met} damaged samples, {allowed} are allowed. Most in {worst}; the last "
            f"one: {last.reason} Upload these shards again, or raise data.faults."
        )


def quarantined(manifest: Manifest) -> list[Hole]:
    """The samples that the dataset's quarantine names.

    Raises:
        DataError: a line that is not one.
    """
    url = storage.join(manifest.url, QUARANTINE)
    if not storage.exists(url):
        return []
    try:
        rows = [json.loads(line) for line in storage.read(url).splitlines() if line.strip()]
        return [Hole(row["shard"], row["key"], row["offset"], row["reason"]) for row in rows]
    except (ValueError, KeyError, TypeError) as err:
        raise DataError(
            f"{url} is not a quarantine: {err}. One line is "
            '{"shard": "00000.tar", "key": "000123", "offset": 0, "reason": "..."}.'
        ) from err


def samples(
    manifest: Manifest, shards: Iterable[Shard] | None = None
) -> Iterator[tuple[Shard, records.Record, dict[str, bytes]]]:
    """Every sample that is not in the dataset's quarantine: its shard, its record, its members.

    Args:
        manifest: the dataset.
        shards: only these of it; each is read once, from end to end.

    Raises:
        ShardError: a shard is not what was indexed.
    """
    skipped = {(hole.shard, hole.key) for hole in quarantined(manifest)}
    for shard in manifest.shards if shards is None else shards:
        lines, seen = open_lines(manifest, shard), 0
        with storage.open_read(shard.url) as file, storage.explained(shard.url):
            for record, members in records.scan(file, shard=shard.url):
                if seen == len(lines) or lines.entry(seen).record != record:
                    raise _changed(shard, record.key)
                seen += 1
                if (storage.name(shard.url), record.key) not in skipped:
                    yield shard, record, members
        if seen < len(lines):
            raise _changed(shard, lines.entry(seen).record.key)


def _changed(shard: Shard, key: str) -> ShardError:
    return ShardError(
        f"{storage.shown(shard.url)}: {key} is not what was indexed; see `diptych data check`. Put "
        "the shard back, or index all of the dataset again."
    )


def split(manifest: Manifest, sample: str) -> tuple[str, str]:
    """(shard, key) of `SHARD/KEY` as the ledger prints it, perhaps behind a source's name.

    Raises:
        DataError: no part of it is a shard of the dataset.
    """
    shards = {storage.name(one.url) for one in manifest.shards}
    parts = sample.split("/")
    for place, part in enumerate(parts[:-1]):
        if part in shards:
            return part, "/".join(parts[place + 1 :])
    raise DataError(
        f"{sample!r} names no shard of {manifest.url}. Write SHARD/KEY, such as "
        f"{min(shards)}/KEY; `diptych ledger` prints both."
    )


def quarantine(manifest: Manifest, shard: str, key: str, reason: str) -> Hole:
    """Puts a sample of a dataset in quarantine; runs leave it out from their next start.

    Args:
        manifest: the dataset.
        shard: name of the shard, such as `00007.tar`.
        key: the sample's key.
        reason: kept with it.

    Raises:
        DataError: the index has no such sample, or it is in quarantine already.
    """
    found = [one for one in manifest.shards if storage.name(one.url) == shard]
    if not found:
        raise DataError(f"{manifest.url} has no shard {shard!r}.")
    lines = open_lines(manifest, found[0])
    records = [entry.record for entry in lines.entries(0, len(lines)) if entry.record.key == key]
    if not records:
        where = storage.shown(found[0].url)
        raise DataError(f"{where} has no sample {key!r}. `diptych ledger` prints the keys.")
    known = quarantined(manifest)
    if any((hole.shard, hole.key) == (shard, key) for hole in known):
        raise DataError(f"{shard}/{key} is in quarantine already.")
    hole = Hole(shard, key, records[0].span()[0], reason)
    url = storage.join(manifest.url, QUARANTINE)
    before = storage.read(url) if known else b""
    row = {**hole._asdict(), "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    storage.write(url, before + json.dumps(row).encode() + b"\n")
    return hole
