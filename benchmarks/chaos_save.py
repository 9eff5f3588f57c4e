"""`make chaos-save`: kills a rank at a random byte of a checkpoint's writing, again and again.

Two DeepSpeed ranks train on a tiny model with a checkpoint every second step. In each attempt one
of them, drawn at random, dies after a number of written bytes that is drawn, too: half of the time
anywhere, half of the time in the small files (ledger, lists, manifest). The next attempt goes on
from the newest complete checkpoint, of which every byte is checked. At the end the weights must be
those of a run that was left alone, to the bit.

    make chaos-save                                  # 160 kills on a disk, 40 on S3
    make chaos-save ARGS="--kills 10 --s3 0"
"""

import argparse
import contextlib
import json
import multiprocessing
import random
import socket
import tempfile
import time
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from diptych.cluster.bucket import serve
from diptych.cluster.host import Host
from diptych.data import storage
from diptych.pretrain.checkpoint import claim, open_checkpoint

from . import save_ranks
from .save_ranks import INTERVAL, WORLD, Task, Trap

_GRACE_S = 2.0
_PATIENCE_S = 120.0
_SPAN = 3
"""Checkpoints of an attempt; it dies in one of them."""


class Attempts:
    """Attempts at one run, each in fresh processes.

    Args:
        run: the run's folder.
        bucket: environment of the bucket's clients; empty for a disk.
    """

    def __init__(self, run: str, bucket: dict[str, str]) -> None:
        self.run, self.bucket, self.number = run, bucket, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*Host.template, "diptych.benchmarks.save_ranks"])

    def go(self, start: int, until: int, victim: int, die_at: int) -> dict[str, Any]:
        """One attempt; returns what its victim said last, and whether it died."""
        self.number += 1
        claim(self.run, self.number)
        with contextlib.ExitStack() as stack:
            url = self.bucket.get("AWS_ENDPOINT_URL", "")
            traps = [Trap(url) for _ in range(WORLD if url else 0)]
            for trap in traps:
                stack.enter_context(trap)
            pipes, ranks = [], []
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            for rank in range(WORLD):
                mine, theirs = self._context.Pipe()
                end = die_at if rank == victim else -1
                way = {"AWS_ENDPOINT_URL": traps[rank].url} if traps else {}
                bucket = {**self.bucket, **way}
                task = Task(self.run, self.number, start, until, port, end, bucket)
                process: Any = self._context.Process(
                    target=save_ranks.work, args=(rank, task, theirs), daemon=True
                )
                process.start()
                theirs.close()
                pipes.append(mine)
                ranks.append(process)
            its = traps[victim] if traps else None
            said = self._listen(pipes[victim], ranks, victim, its, die_at)
            for pipe in pipes:
                pipe.close()
        return said | {"died": ranks[victim].exitcode == -9}

    def _listen(
        self, pipe: Any, ranks: list[Any], victim: int, trap: Trap | None, die_at: int
    ) -> dict[str, Any]:
        """What the victim says until it ends; others then have a moment, as in a run."""
        said: dict[str, Any] = {}
        with contextlib.suppress(EOFError):
            while pipe.poll(_PATIENCE_S):
                what, value = pipe.recv()
                said[what] = value
                if what == "training" and trap:
                    trap.pid, trap.count, trap.left = ranks[victim].pid, 0, die_at
            raise SystemExit(f"chaos-save: no word from rank {victim} for {_PATIENCE_S:.0f} s")
        if trap:
            said["wrote"] = trap.count
        wait([rank.sentinel for rank in ranks if rank is not ranks[victim]], timeout=_GRACE_S)
        for rank in ranks:
            rank.join(0 if rank is not ranks[victim] else 10)
            rank.kill()
            rank.join()
        return said


def chaos(run: str, bucket: dict[str, str], kills: int, seed: int, until: float) -> dict[str, Any]:
    """Kills so often at one run, or until a monotonic time; compares its end with a calm run's.

    Raises:
        SystemExit: a kill left no checkpoint to go on from, or cost more than an interval.
    """
    draw, attempts = random.Random(seed), Attempts(f"{run}/fire", bucket)
    sizes = [_bytes(f"{run}/measured-{rank}", bucket, rank) for rank in range(WORLD)]
    at, lost, began, killed = 0, Counter[int](), Counter[str](), 0
    while killed < kills and time.monotonic() < until:
        victim = draw.randrange(WORLD)
        whole, large = sizes[victim]
        byte = draw.randrange(whole) if draw.random() < 0.5 else draw.randrange(large, whole)
        byte += whole * draw.randrange(_SPAN)
        said = attempts.go(at, at + INTERVAL * (_SPAN + 2), victim, byte)
        if not said["died"]:
            raise SystemExit(f"chaos-save: rank {victim} outlived byte {byte}: {said}")
        killed += 1
        found = save_ranks.newest(attempts.run)
        saving = said.get("saving", at)
        if found < max(at, saving - INTERVAL):
            raise SystemExit(f"chaos-save: died in {saving}, newest complete is {found}, was {at}")
        lost[saving - found] += 1
        began["with" if found == saving else "without"] += 1
        at = found
        print(f"  {killed} rank {victim} byte {byte}: saving {saving}, on from {at}", flush=True)
    last = at + INTERVAL
    attempts.go(at, last, 0, -1)
    Attempts(f"{run}/calm", bucket).go(0, last, 0, -1)
    return {
        "kills": killed,
        "resumed from a complete checkpoint": killed,
        "steps lost, of those before the checkpoint that was being written": dict(lost),
        "died after it was complete": began["with"],
        "bytes of a checkpoint, by rank": [whole for whole, _ in sizes],
        "steps": last,
        "same bits as a run left alone": _same(attempts.run, f"{run}/calm", last),
    }


def _bytes(run: str, bucket: dict[str, str], rank: int) -> tuple[int, int]:
    """Bytes that a rank writes for one checkpoint: (all, those up to the end of its slices)."""
    said = Attempts(run, bucket).go(0, INTERVAL, rank, -1)
    name = f"attempt-1/rank-{rank}.safetensors"
    slices, _ = storage.stat(storage.join(run, "checkpoints", f"{INTERVAL:08d}", name))
    return int(said["wrote"]), int(min(slices, said["wrote"] - 1))


def _same(ours: str, theirs: str, step: int) -> bool:
    one, two = open_checkpoint(ours, step), open_checkpoint(theirs, step)
    return one.kinds == two.kinds and all(
        torch.equal(one.read(name, kind), two.read(name, kind))
        for kind in one.kinds
        for name in one.shapes
    )


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(prog="make chaos-save", description=__doc__)
    parser.add_argument("--kills", type=int, default=160, help="on a disk")
    parser.add_argument("--s3", type=int, default=40, help="on a bucket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="then each ends its kills")
    asked = parser.parse_args(arguments)
    limit = 60 * asked.minutes
    home = Path(tempfile.mkdtemp(prefix="diptych-chaos-save-"))
    found: list[dict[str, Any]] = []
    if asked.kills:
        run = storage.absolute(str(home / "runs"))
        found.append(
            {"where": "disk", **chaos(run, {}, asked.kills, asked.seed, time.monotonic() + limit)}
        )
        left = save_ranks.unfinished(home)
        found[-1] |= {"files begun and left": len(left)}
    if asked.s3:
        with serve(home / "weed", "chaos") as server:
            end = time.monotonic() + limit
            facts = chaos("s3://chaos/runs", server, asked.s3, asked.seed, end)
            found.append({"where": "S3", **facts})
    for row in found:
        print(json.dumps({"benchmark": "chaos-save", **row}))
        table = Table("what", "found")
        for name, value in row.items():
            table.add_row(name, str(value))
        Console().print(table)
    return found


if __name__ == "__main__":
    main()
