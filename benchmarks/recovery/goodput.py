"""`make bench-goodput`: what is left of training when a rank is killed every 30 steps.

Useful steps x the step time of a calm run / wall, from the first step to the last: 1 would be a run
that nothing disturbs and that keeps nothing. Beside Diptych stands what is usually written for
torchrun: DistributedDataParallel, AdamW and `torch.save` to this disk every ten steps; and the same
as often as ours, which keeps one every other step, in the bucket. Kills come at any moment of a
step. One costs seconds whatever a step costs, so the step time is printed too.

    make bench-goodput
    make bench-goodput ARGS="--rounds 1 --kills 2 --rows 64"
"""

import argparse
import json
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from diptych.pretrain.recipes import easy_model

from .. import ratios
from ..chaos import recipe
from ..rounds import Row, interleave, rows
from ..stream.home import HOME
from .diary import Diary
from .visit import Visit, ask, ground, visit

OFTEN = " as often"
ARMS = ("ours", "torch.save", f"torch.save{OFTEN}", "ours again")
GOAL = 0.95
_WINDOW = 5
_LAG_S = 2.0
"""Kills come up to so long after the step that they wait for."""


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measures and prints; returns a row for each arm."""
    parser = argparse.ArgumentParser(prog="make bench-goodput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4, help="of a visit")
    parser.add_argument("--every", type=int, default=30, help="steps between kills, 6 or more")
    parser.add_argument("--rows", type=int, default=1024, help="of a global batch")
    parser.add_argument("--keep", type=int, default=2, help="steps between our checkpoints")
    asked, record = ask(parser, arguments, ARMS, HOME / "goodput")
    arms = asked.arms.split(",")
    with ground("goodput", workers=2) as (home, address):
        run = recipe("s3://goodput/easy", 100_000, samples=5 * asked.rows).model_copy(
            update={"batch": asked.rows, "model": easy_model()}
        )

        def one(arm: str) -> Row:
            keep = 10 if arm == "torch.save" else asked.keep
            kept = run.model_copy(update={"checkpoint_steps": keep})
            return _measure(visit(arm.removesuffix(OFTEN), kept, "goodput", home, address), asked)

        interleave("goodput", arms, one, rounds=asked.rounds, record=record, told=_tell)
    return _report(list(rows(record)), arms)


def _measure(job: Visit, asked: Any) -> Row:
    try:
        job.go(asked.kills, asked.every, lag_s=_LAG_S)
    except RuntimeError as err:
        return {"error": str(err)}
    return judged(Diary(job.folder / "diary").news())


def judged(lines: list[dict[str, Any]]) -> Row:
    """Goodput and what it is made of, of the diary of a visit."""
    steps = [line for line in lines if line["what"] == "step"]
    first, last = steps[0], steps[-1]
    calm = [  # of several steps, because a driver hears of them four times a second
        (after["t"] - before["t"]) / _WINDOW
        for before, after in zip(steps, steps[_WINDOW:], strict=False)
        if before["attempt"] == after["attempt"]
    ]
    step_s, wall_s = statistics.median(calm), last["t"] - first["t"]
    useful = last["value"] - first["value"]
    again = len(steps) - 1 - useful
    found = {"goodput": useful * step_s / wall_s, "step_s": step_s, "wall_s": wall_s}
    return {**found, "useful": useful, "again": again}


def _report(found: list[Row], arms: list[str]) -> list[Row]:
    table = Table("arm", "goodput", "s a step", "steps taken twice", "goal")
    said: list[Row] = []
    for arm in arms:
        mine = [row for row in found if row["arm"] == arm and "error" not in row]
        names = ("goodput", "step_s", "again")
        said.append({"benchmark": "goodput", "arm": arm})
        said[-1] |= {name: [round(row[name], 4) for row in mine] for name in names}
        goal = f"at least {GOAL}" if arm == "ours" else ""
        table.add_row(arm, *(str(ratios.spread([r[n] for r in mine])) for n in names), goal)
        print(json.dumps(said[-1]))
    Console(width=120).print(table)
    return said


def _tell(row: Row) -> None:
    said = row.get("error") or f"goodput {row['goodput']:.3f}, {row['step_s']:.2f} s a step"
    print(f"  {row['round']} {row['arm']:12} {said}  load {row['load']:.1f}", flush=True)


if __name__ == "__main__":
    main()
