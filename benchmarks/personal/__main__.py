"""Runs the cells that are not there yet, for some minutes, and writes the tables of all that are.

python -m diptych.benchmarks.personal dreambooth --base /work/runs/t2i_tiny20 --minutes 25

Each call goes on where the one before it ended: a finished cell has its row in cells.jsonl.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from diptych.data import storage
from diptych.finetune.features import open_features
from diptych.finetune.sample import painter
from diptych.pretrain.rundir import RunDir

from . import cells, report
from .running import Means, run

_CELLS = {"dreambooth": cells.dreambooth, "asides": cells.asides, "control": cells.controls}


def main() -> None:
    """See the module."""
    given = _given()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    home: Path = given.home / given.what
    base = painter(RunDir(storage.absolute(given.base)))
    control = given.what == "control"
    means = Means(
        base=base,
        encoder=open_features(given.features, base),
        home=home,
        subjects=given.subjects,
        data=given.data,
        steps=given.steps or (400 if control else 60),
        looks=2,
        batch=16 if control else 8,
        count=16 if control else 8,
        settings=tuple(given.set),
    )
    until, kept = time.monotonic() + 60 * given.minutes, home / "cells.jsonl"
    rows = _rows(kept)
    listed = list(_CELLS[given.what]())
    for cell in listed:
        if cell.name in rows or time.monotonic() > until:
            continue
        rows[cell.name] = run(cell, means)
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
        print(json.dumps(rows[cell.name]), flush=True)
    print(f"{len(rows)} of {len(listed)} cells are there")
    if rows:
        report.write(given.what, list(rows.values()), home, given.out)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(_CELLS))
    parser.add_argument("--base", required=True, help="a finished t2i_tiny20")
    parser.add_argument("--home", type=Path, default=Path(".diptych/personal"), help="of the runs")
    parser.add_argument("--subjects", default="../shared/data/dreambooth-20.tar")
    parser.add_argument("--data", default=".diptych/tiny20/train", help="of the base")
    parser.add_argument("--steps", type=int, help="by default 60; of a control 400")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--features", help="KIND=WEIGHTS, or run=URL, of the encoder of likeness")
    parser.add_argument("--set", action="append", default=[], help="of the recipes, path=value")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    return parser.parse_args()


def _rows(kept: Path) -> dict[str, dict[str, Any]]:
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


if __name__ == "__main__":
    main()
