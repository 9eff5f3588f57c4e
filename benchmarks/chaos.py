"""Kills a random rank at random moments, again and again, and compares with a run left alone.

    python benchmarks/chaos.py --kills 10            # make chaos

Prints JSON lines and a table: seconds from each SIGKILL to the next optimiser step, whether losses
are the same bits, samples lost and repeated.
"""

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diptych.cluster import ledger
from diptych.cluster.bucket import serve
from diptych.cluster.job import Event, Place
from diptych.cluster.launch import cluster
from diptych.cluster.shapes import Shape
from diptych.cluster.track import Tracker
from diptych.cluster.train import prepare, run_on
from diptych.cluster.worker import open_plan
from diptych.config import plain
from diptych.data import easyvqa, index, storage, tokens
from diptych.data.make import words
from diptych.data.pack import pack, scattered
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir

SHAPE = Shape(workers=2, max_failures=10_000)
BATCH = 16


def recipe(url: str, steps: int, samples: int = 600) -> Run:
    """A small run on so many samples, which are packed and indexed here."""
    chosen = scattered(easyvqa.samples("test"))[:samples]
    index.build(pack(chosen, url, per_shard=100))
    texts = [text for _, members in chosen for text in words(members)]
    storage.write(f"{url}/tokenizer.json", tokens.learn(texts, 300).encode())
    values = plain(vlp_easy()) | {"name": "chaos", "batch": BATCH, "steps": steps, "log_steps": 1}
    values |= {"checkpoint_steps": 10, "data": {"train": url, "tokenizer": f"{url}/tokenizer.json"}}
    values["model"] |= {"width": 32, "depth": 1, "heads": 2, "stem": 8}
    return revise(values, [], KINDS, source="chaos")


class Killer:
    """Hears what a tracker hears, and kills between 0 and `within_s` seconds after the last one."""

    def __init__(self, kills: int, within_s: float, seed: int, spaced: bool = False) -> None:
        self.spaced = spaced
        self.left, self.within_s, self.rng = kills, within_s, random.Random(seed)
        self.places: list[Place] = []
        self.waits: list[float] = []
        self.steps: list[int] = []
        self.resumes = 0
        """Kills that hit before the group had taken a step again."""
        self._killed_at: float | None = None
        self._last = 0
        self._lock = threading.Lock()

    def hear(self, event: Event) -> None:
        """A step ends the wait for it."""
        with self._lock:
            if event.kind == "metrics":
                self._last = int(event.body["step"])
                if self._killed_at and self.fresh:
                    self.waits.append(time.monotonic() - self._killed_at)
                    self._killed_at = None

    fresh = False
    """Whether a group was begun after the last kill, so that its steps are its own."""

    def run(self) -> None:
        """Kills, until there are no kills left."""
        while self.left:
            time.sleep(self.rng.uniform(0.05, self.within_s))
            with self._lock:
                if not self.places or (self.spaced and self._killed_at):
                    continue
                victim = self.rng.choice(self.places)
                self.places, self.fresh = [], False
                self.resumes += self._killed_at is not None
                self._killed_at = self._killed_at or time.monotonic()
                self.steps.append(self._last)
                self.left -= 1
            try:
                os.kill(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.left += 1


class Watched(Tracker):
    """A tracker with a killer at its side."""

    killer: Killer

    def hear(self, event: Event) -> None:
        super().hear(event)
        self.killer.hear(event)

    def begin(self, start: int, places: list[Place]) -> int:
        number = super().begin(start, places)
        self.killer.places, self.killer.fresh = places, True
        return number


def go(run: Run, url: str, killer: Killer) -> tuple[RunDir, float]:
    """A run with a killer; returns its folder and seconds."""
    import diptych.cluster.train as training

    Watched.killer = killer
    training.Tracker = Watched
    threading.Thread(target=killer.run, daemon=True).start()
    place, data = prepare(run, SHAPE, url)
    began = time.monotonic()
    run_on(run, SHAPE, place, data, console=Console(quiet=True))
    return place, time.monotonic() - began


def losses(place: RunDir) -> list[dict[str, Any]]:
    """Metrics without the clock."""
    return [{n: v for n, v in row.items() if n != "seconds"} for row in place.rows("metrics.jsonl")]


def chaos(run: Run, runs: str, killer: Killer) -> dict[str, Any]:
    """The calm run, the run under fire, and what is the same."""
    with cluster(None, SHAPE):
        calm, calm_s = go(run, f"{runs}/calm", Killer(0, 1, 0))
        place, fire_s = go(run, f"{runs}/fire", killer)
    lines = list(ledger.lines(place, open_plan(run), 0, run.steps))
    keys = {(line.shard, line.key, line.epoch) for line in lines}
    return {
        "kills": len(killer.steps),
        "of them while resuming": killer.resumes,
        "same bits": losses(place) == losses(calm),
        "samples repeated": len(lines) - len(keys),
        "samples lost": run.steps * BATCH - len(keys),
        "slices recorded as planned": f"{ledger.verify(place, lines)} of {2 * run.steps}",
        "attempts": len(ledger.attempts(place)),
        "calm s": round(calm_s, 1),
        "under fire s": round(fire_s, 1),
        "kill to next step, s": [round(wait, 2) for wait in killer.waits],
        "median s": round(statistics.median(killer.waits), 2) if killer.waits else None,
    }


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--within", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--spaced", action="store_true", help="never while the group resumes")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="diptych-chaos-"))
    facts: dict[str, Any] = {}
    with serve(home, "chaos"):
        run = recipe("s3://chaos/easy", asked.steps)
        if asked.kills:
            killer = Killer(asked.kills, asked.within, asked.seed, asked.spaced)
            facts = chaos(run, "s3://chaos/runs", killer)
            print(json.dumps(facts), flush=True)
    table = Table("what", "found")
    for name, value in facts.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
