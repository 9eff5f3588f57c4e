"""`make bench-checkpoint`: seconds that a checkpoint adds to training, its tail included.

Ranks under DeepSpeed train on; each turn takes a step, a checkpoint by one of the arms, some steps
more, and waits for what is not yet there. The turns without a checkpoint are taken off. Arms take
turns; `none` and `ours` come twice a round, and what they differ by is noise. A checkpoint is there
once it is on disk: peers, which leave it in the page cache, are given a thread that flushes it.

    make bench-checkpoint                                # ~1 GB of state, 2 ranks
    make bench-checkpoint ARGS="--width 64 --depth 2 --rounds 1 --stages 1"
"""

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from ..model import Size
from ..rounds import Row, interleave
from ..stream.home import HOME
from ..team import Team
from . import report
from .rank import Rank

PEERS = ("torch.save", "deepspeed", "dcp", "dcp async")
TRAIN = ("none", "ours", *PEERS, "none again", "ours again")
PERSIST = ("persist ours", "persist raw", "persist raw direct", "persist ours again")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures and prints; returns the findings."""
    parser = argparse.ArgumentParser(prog="make bench-checkpoint", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stages", default="1,0", help="ZeRO stages, with commas")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--after", type=int, default=5, help="steps after each checkpoint")
    parser.add_argument("--home", type=Path, default=HOME / "checkpoint")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-checkpoint: ended"))
    asked.home.mkdir(parents=True, exist_ok=True)
    record = asked.home / f"{asked.ranks}-{asked.width}x{asked.depth}-{asked.after}.jsonl"
    if asked.fresh:
        record.unlink(missing_ok=True)
    size = Size(width=asked.width, depth=asked.depth, rows=2 * asked.ranks)
    found: dict[str, Any] = {}
    for stage in map(int, asked.stages.split(",")):
        found[f"zero {stage}"] = _stage(stage, size, asked, record)
    print(json.dumps({"benchmark": "checkpoint", **found}))
    return found


def _stage(stage: int, size: Size, asked: argparse.Namespace, record: Path) -> dict[str, Any]:
    disk = asked.home / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    with Team(asked.ranks, Rank, size, stage, disk, asked.after) as team:
        facts: dict[str, Any] = team.call("facts")[0]
        print(f"\nZeRO {stage}: {facts['bytes'] / 1e9:.2f} GB of state, {asked.ranks} ranks")

        def one(arm: str) -> Row:
            turns: list[dict[str, float]] = team.call("turn", arm)
            worst = {
                n: max(turn[n] for turn in turns)
                for n in ("wall_s", "stall_s", "tail_s", "stolen_s")
            }
            return {
                **worst,
                "cpu_s": sum(turn["cpu_s"] for turn in turns),
                **team.call("settle", arm)[0],
            }

        for part, arms in ((f"train {stage}", TRAIN), (f"persist {stage}", PERSIST)):
            for arm in arms[1:3]:  # buffers get warm; not on record
                one(arm)
            interleave(part, arms, one, rounds=asked.rounds, record=record, told=_tell)
        if not all(team.call("check")):
            raise SystemExit("bench-checkpoint: our checkpoint is not what the ranks hold")
    shutil.rmtree(disk, ignore_errors=True)
    return report.tell(record, stage, facts)


def _tell(row: Row) -> None:
    said = f"{row['wall_s']:7.3f} s, stall {row['stall_s']:6.3f}, tail {row['tail_s']:6.3f}"
    print(f"  {row['round']} {row['arm']:20} {said}  load {row['load']:.1f}", flush=True)


if __name__ == "__main__":
    main()
