"""Arms in turns: A B C, C B A, A B C, ... so that a slow minute of the machine hits them all.

Every measurement is one line of JSON; a run that was stopped goes on with its next whole round.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_TRIES = 2


def interleave(
    part: str,
    arms: Sequence[str],
    measure: Callable[[str], Row],
    *,
    rounds: int,
    record: Path,
    told: Callable[[Row], None],
) -> None:
    """Measures every arm once a round and adds the rows to the file `record`.

    An arm that has failed twice is left out of the rounds that follow; its rows say why.
    """
    known = [row for row in rows(record) if row["part"] == part]
    whole = _whole_rounds(known, arms)
    for number in range(whole, rounds):
        for arm in arms if number % 2 == 0 else list(reversed(arms)):
            if _failures(record, part, arm) >= _TRIES:
                continue
            load = os.getloadavg()[0]
            row = {"part": part, "arm": arm, "round": number, "load": load, **measure(arm)}
            with open(record, "a") as file:
                file.write(json.dumps(row) + "\n")
            told(row)


def rows(record: Path) -> Iterator[Row]:
    """The measurements of a file, the last one of each (part, arm, round)."""
    if not record.exists():
        return
    latest: dict[tuple[str, str, int], Row] = {}
    for line in record.read_text().splitlines():
        row = json.loads(line)
        latest[row["part"], row["arm"], row["round"]] = row
    yield from latest.values()


def _whole_rounds(known: Sequence[Row], arms: Sequence[str]) -> int:
    seen = {(row["round"], row["arm"]) for row in known}
    dead = {arm for arm in arms if sum(r["arm"] == arm and "error" in r for r in known) >= _TRIES}
    number = 0
    while all((number, arm) in seen or arm in dead for arm in arms) and number < 1000:
        number += 1
    return number


def _failures(record: Path, part: str, arm: str) -> int:
    mine = [row for row in rows(record) if (row["part"], row["arm"]) == (part, arm)]
    return sum("error" in row for row in mine)
