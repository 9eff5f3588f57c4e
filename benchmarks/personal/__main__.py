"""Runs the cells that are not there yet, for some minutes, and writes the tables of all that are.

python -m diptych.benchmarks.personal dreambooth --base /work/runs/t2i_tiny20 --minutes 25

Each call goes on where the one before it ended: a finished cell has its row in cells.jsonl, and an
interrupted one goes on from its checkpoint.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from . import cells, report
from .cells import Cell

_COMMAND = (sys.executable, "-P", "-m", "diptych")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["dreambooth", "control"])
    parser.add_argument("--base", required=True, help="a finished t2i_tiny20")
    parser.add_argument("--home", default=".diptych/personal", help="folder of the runs")
    parser.add_argument("--subjects", default="../shared/data/dreambooth-20.tar")
    parser.add_argument("--data", default=".diptych/tiny20/train", help="of the controls")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--features", help="KIND=WEIGHTS of the encoder of likeness")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    home = str(Path(given.home).absolute() / given.what)
    if given.what == "dreambooth":
        listed = list(cells.dreambooth(given.subjects, given.base, home, given.steps))
    else:
        listed = list(cells.controls(given.data, given.base, home, given.steps))
    until = time.monotonic() + 60 * given.minutes
    kept = Path(home) / "cells.jsonl"
    rows = _rows(kept)
    for cell in listed:
        if cell.name in rows or time.monotonic() > until:
            continue
        extra = ("--features", given.features) if given.features and cell.subject else ()
        rows[cell.name] = _run(cell, Path(home), extra)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    print(f"{len(rows)} of {len(listed)} cells are there")
    if rows:
        report.write(given.what, list(rows.values()), Path(home), given.out)


def _rows(kept: Path) -> dict[str, dict[str, object]]:
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def _run(cell: Cell, home: Path, extra: tuple[str, ...]) -> dict[str, object]:
    """Runs one cell to its end; returns its first and last look, and the bytes of its weights."""
    began = time.monotonic()
    subprocess.run([*_COMMAND, *cell.words, *extra, "--json"], check=True, stdout=subprocess.PIPE)
    place = home / cell.name
    looks = [json.loads(line) for line in (place / "looks.jsonl").read_text().splitlines()]
    looks.sort(key=lambda row: row["step"])
    newest = max((place / "checkpoints").glob("*/manifest.json"))
    shapes = json.loads(newest.read_text())["shapes"]
    numbers = sum(_product(shape) for shape in shapes.values())
    return {
        "name": cell.name,
        "method": cell.method,
        "subject": cell.subject,
        "seed": cell.seed,
        "first": looks[0],
        "last": looks[-1],
        "trained bytes": 4 * numbers,
        "seconds": time.monotonic() - began,
    }


def _product(shape: list[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


if __name__ == "__main__":
    main()
