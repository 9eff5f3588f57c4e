"""The driver of our run, as `diptych train` is one, on a cluster that is up; it keeps a diary."""

import os
import sys
from pathlib import Path

from rich.console import Console

from diptych.benchmarks.recovery.diary import Diary
from diptych.cluster import train as training
from diptych.cluster.job import Event, Place
from diptych.cluster.shapes import Shape
from diptych.cluster.track import Tracker
from diptych.config import from_yaml
from diptych.errors import Stopped
from diptych.finetune.parts import KINDS
from diptych.pretrain.run import parse_run

SHAPE = Shape(workers=2, max_failures=10_000)


class Watched(Tracker):
    """A tracker that also writes down where ranks are and each step."""

    diary: Diary
    attempt = 0

    def hear(self, event: Event) -> None:
        if event.kind == "metrics":
            self.diary.write("step", self.attempt, int(event.body["step"]))
        super().hear(event)

    def begin(self, start: int, places: list[Place]) -> int:
        self.attempt = super().begin(start, places)
        for rank, place in enumerate(places):
            self.diary.write(f"pid {rank}", self.attempt, place.pid)
        return self.attempt


def main(folder: str, url: str, address: str) -> None:
    """Trains until it is told to stop."""
    Watched.diary = Diary(Path(folder) / "diary")
    training.Tracker = Watched
    recipe = from_yaml((Path(folder) / "run.yaml").read_text(), source="run.yaml")
    run = parse_run(recipe, KINDS, source="run.yaml")
    try:
        training.train(run, SHAPE, url, console=Console(quiet=True), address=address)
    except Stopped:
        os._exit(130)  # as `diptych` does


if __name__ == "__main__":
    main(*sys.argv[1:])
