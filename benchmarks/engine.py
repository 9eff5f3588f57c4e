"""`make bench-engine`: what our loop and engine add to bare DeepSpeed at the same stage.

Both train the same model on the same batches in the same processes, block by block in turns; bare
DeepSpeed comes twice a round. At the end both hold the same weights to the bit. Memory is that of
processes of their own.

    make bench-engine
    make bench-engine ARGS="--rounds 1 --steps 4 --widths 16 --ranks 1 --stages 1"
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from diptych.cluster import partition
from diptych.cluster.checkpoint import Writer
from diptych.cluster.engine import DeepSpeedEngine
from diptych.cluster.job import Board, Job
from diptych.cluster.journal import Journal
from diptych.cluster.shapes import Shape, deepspeed_config
from diptych.cluster.worker import Rank as Told
from diptych.config import plain
from diptych.data.batch import Batch
from diptych.pretrain.loop import train
from diptych.pretrain.optim import adamw, lr_at

from . import model, ratios
from .model import Size
from .rounds import Row, interleave, rows
from .stream.home import HOME
from .team import Team

ARMS = ("bare", "ours", "bare again")
GOAL = 1.02


class Silent:
    """Stands in for the pipe to a host."""

    def send(self, said: Any) -> None:
        """Nobody listens."""


class Bare:
    """DeepSpeed as its guide shows it."""

    def __init__(self, rank: int, size: Size, shape: Shape) -> None:
        self.run = model.recipe(size)
        task = model.task(self.run)
        optimiser = adamw(task, self.run.optim)
        for group in optimiser.param_groups:
            group["lr"] = 0.0  # as ours: ZeRO's empty first step must move nothing
        config = deepspeed_config(self.run, shape)
        self.engine: Any = deepspeed.initialize(model=task, optimizer=optimiser, config=config)[0]
        partition.keep_whole(self.engine, task.shared)  # else ZeRO-3 takes word vectors away
        partition.set_steps(self.engine, 0)

    def go(self, batches: Iterator[tuple[int, Batch]]) -> None:
        """Some steps."""
        for step, batch in batches:
            for group in self.engine.optimizer.param_groups:
                group["lr"] = lr_at(self.run.optim, step, self.run.steps)
            self.engine.backward(self.engine(batch).total)
            self.engine.step()


class Ours:
    """The loop, its ledger, its metrics and its engine, as a rank runs them."""

    def __init__(self, rank: int, size: Size, shape: Shape) -> None:
        self.run = model.recipe(size)
        board = Board(multiprocessing.get_context("spawn"))
        silent: Any = Silent()
        self.told = Told(rank, Job({}, plain(shape), "/nowhere", "", 1, 0), self.run, board, silent)
        writer = Writer(
            run="/nowhere",
            recipe="bench",
            rank=rank,
            world=shape.workers,
            attempt=1,
            keep=1,
            journal=Journal(rank),
            stream=lambda step: {},
        )
        ours = DeepSpeedEngine(model.task(self.run), self.run, shape, writer)
        self.ours, self.engine = ours, ours.engine

    def go(self, batches: Iterator[tuple[int, Batch]]) -> None:
        """Some steps."""
        train(self.ours, batches, self.run, self.told)


class Rank:
    """One rank with the arms that it is to have."""

    def __init__(self, rank: int, world: int, size: Size, stage: Any, arms: Sequence[str]) -> None:
        shape = Shape(workers=world, zero_stage=stage)
        kinds = {"bare": Bare, "ours": Ours}
        self._arms = {arm: kinds[arm](rank, size, shape) for arm in arms}
        self._step = dict.fromkeys(arms, 0)
        self._batches = model.batches(size, 8, rank, world)

    def go(self, arm: str, steps: int) -> dict[str, float]:
        """Seconds of some steps."""
        first = self._step[arm]
        self._step[arm] = first + steps
        some = ((n, self._batches[n % len(self._batches)]) for n in range(first, first + steps))
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        self._arms[arm].go(some)
        dist.barrier()
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def catch_up(self) -> bool:
        """Brings all arms to the same step; whether their weights are the same bits then."""
        last = max(self._step.values())
        held: list[list[torch.Tensor]] = []
        for arm in self._arms:
            self.go(arm, last - self._step[arm])
            held.append([piece[3] for piece in partition.held(self._arms[arm].engine)])
        return all(torch.equal(a, b) for a, b in zip(*held, strict=True))

    def peak_mib(self) -> float:
        """The most memory that this process had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures and prints; returns a row for each model, world size and stage."""
    parser = argparse.ArgumentParser(prog="make bench-engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--widths", default="256,64")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--stages", default="0,1,3")
    parser.add_argument("--home", type=Path, default=HOME / "engine")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    asked = parser.parse_args(arguments)
    asked.home.mkdir(parents=True, exist_ok=True)
    record = asked.home / f"steps-{asked.steps}.jsonl"
    if asked.fresh:
        record.unlink(missing_ok=True)
    cases = [
        (int(width), int(world), int(stage))
        for width in asked.widths.split(",")
        for world in asked.ranks.split(",")
        for stage in asked.stages.split(",")
    ]
    found = [_case(*case, asked, record) for case in cases]
    table = Table(*(name for name in found[0] if name != "benchmark"))
    for row in found:
        print(json.dumps(row))
        table.add_row(*(str(value) for name, value in row.items() if name != "benchmark"))
    Console(width=150).print(table)
    return found


def _case(width: int, world: int, stage: int, asked: Any, record: Path) -> dict[str, Any]:
    part = f"width {width}, {world} ranks, zero {stage}"
    size = Size(width=width, depth=4, tokens=64, rows=8)
    memory: dict[str, float] = {}
    for arm in ("bare", "ours"):
        with Team(world, Rank, size, stage, (arm,)) as alone:
            alone.call("go", arm, max(4, asked.steps // 2))
            memory[arm] = max(alone.call("peak_mib"))
    with Team(world, Rank, size, stage, ("bare", "ours")) as team:

        def one(arm: str) -> Row:
            turns = team.call("go", arm.removesuffix(" again"), asked.steps)
            return {
                "wall_s": max(turn["wall_s"] for turn in turns),
                "cpu_s": sum(turn["cpu_s"] for turn in turns),
            }

        for arm in ("bare", "ours"):
            team.call("go", arm, 3)
        interleave(part, ARMS, one, rounds=asked.rounds, record=record, told=_tell)
        same = all(team.call("catch_up"))
    if not same:
        raise SystemExit(f"bench-engine: {part}: ours and bare DeepSpeed have other weights")
    known = [row for row in rows(record) if row["part"] == part]
    wall, cpu = (ratios.ratio(known, "ours", "bare", name) for name in ("wall_s", "cpu_s"))
    trusted, control = ratios.trusted(known, "bare", "bare again", "wall_s")
    bare = ratios.spread(list(ratios.values(known, "bare", "wall_s").values()))
    assert wall and cpu and bare
    reached = "reached" if min(wall.middle, cpu.middle) <= GOAL else "missed"
    return {
        "benchmark": "engine",
        "width": width,
        "ranks": world,
        "zero": stage,
        "bare ms a step": round(1000 * bare.middle / asked.steps, 1),
        "ours / bare, wall": _fine(wall),
        "CPU": _fine(cpu),
        "bare / bare": _fine(control),
        "MiB bare": round(memory["bare"]),
        "MiB ours": round(memory["ours"]),
        "same weights": same,
        "at most 1.02": reached if trusted else "no verdict",
    }


def _fine(found: ratios.Spread | None) -> str:
    return f"{found.middle:.3f} [{found.low:.3f}-{found.high:.3f}]" if found else ""


def _tell(row: Row) -> None:
    print(f"  {row['part']}: {row['round']} {row['arm']:11} {row['wall_s']:.3f} s", flush=True)


if __name__ == "__main__":
    main()
