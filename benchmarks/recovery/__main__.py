"""`make bench-recovery`: seconds from SIGKILL to the next step, and from start to the first.

One run by three ways: Diptych, `torchrun --max-restarts`, and Ray Train's TorchTrainer with
FailureConfig. Model, engine, data and checkpoints are the same in all; what differs is who starts
the ranks and starts them again. A Ray cluster and an S3 server are up before anything is timed.
Arms take turns; ours comes twice a round.

    make bench-recovery
    make bench-recovery ARGS="--rounds 1 --kills 1 --arms ours"
"""

import argparse
import json
import os
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import ratios
from ..chaos import recipe
from ..rounds import Row, interleave, rows
from ..stream.home import HOME
from ..stream.peers import beside
from .visit import Visit, ask, ground, visit

ARMS = ("ours", "torchrun", "ray train", "ours again")
GOALS = {"torchrun": 3.0, "ray train": 5.0}
SAYS = {"kill_s": "SIGKILL to the next step", "start_s": "start to the first step"}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures and prints; returns a row for each arm."""
    parser = argparse.ArgumentParser(prog="make bench-recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=2, help="of a visit")
    parser.add_argument("--calm", type=int, default=14, help="steps before each kill")
    asked, record = ask(parser, arguments, ARMS, HOME / "recovery")
    path = [beside("ray-train", "pandas"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # of the cluster's workers, too
    arms = asked.arms.split(",")
    with ground("recovery", workers=4) as (home, address):
        run = recipe("s3://recovery/easy", 100_000)

        def one(arm: str) -> Row:
            return _measure(visit(arm, run, "recovery", home, address), asked)

        interleave("recovery", arms, one, rounds=asked.rounds, record=record, told=_tell)
    return _report(list(rows(record)), arms)


def _measure(job: Visit, asked: Any) -> Row:
    try:
        found = job.go(asked.kills, asked.calm)
    except RuntimeError as err:
        return {"error": str(err)}
    return found | {"kill_s": statistics.median(found["kill_s"]), "all_kill_s": found["kill_s"]}


def _report(found: list[Row], arms: list[str]) -> list[dict[str, Any]]:
    table = Table("arm", *SAYS.values(), "ratios to ours", "goal", "stop")
    said: list[dict[str, Any]] = []
    for arm in arms:
        mine = [row for row in found if row["arm"] == arm and "error" not in row]
        kills = [wait for row in mine for wait in row["all_kill_s"]]
        starts, stops = ([row[name] for row in mine] for name in ("start_s", "stop_s"))
        over = {name: ratios.ratio(found, arm, "ours", name) for name in SAYS}
        said.append({"benchmark": "recovery", "arm": arm, "kills": len(kills)})
        for name, values in (("kill_s", kills), ("start_s", starts), ("stop_s", stops)):
            said[-1][name] = [round(value, 2) for value in values]
        said[-1] |= {f"{name} / ours": str(ratio) for name, ratio in over.items()}
        goal = f"at least {GOALS[arm]}" if arm in GOALS else ""
        spreads = [str(ratios.spread(values)) for values in (kills, starts)]
        shown = "; ".join(str(ratio) for ratio in over.values())
        table.add_row(arm, *spreads, shown, goal, str(ratios.spread(stops)))
        print(json.dumps(said[-1]))
    Console(width=140).print(table)
    return said


def _tell(row: Row) -> None:
    said = row.get("error") or (
        f"kill {row['kill_s']:.2f} s, start {row['start_s']:.2f} s, stop {row['stop_s']:.2f} s"
    )
    print(f"  {row['round']} {row['arm']:12} {said}  load {row['load']:.1f}", flush=True)


if __name__ == "__main__":
    main()
