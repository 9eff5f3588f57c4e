"""One rank as `chaos.py` has torchrun start it: `work` of cluster/worker.py, without a host."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from diptych.cluster.job import Board, Event, Job, Place
from diptych.cluster.shapes import Shape
from diptych.cluster.worker import work
from diptych.config import from_yaml, plain
from diptych.pretrain.checkpoint import steps

folder, url, data = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])


class Pipe:
    """Stands in for the pipe to a host: writes down each step."""

    def send(self, said: Any) -> None:
        if isinstance(said, Event) and said.kind == "metrics":
            with open(folder / f"steps-{attempt}", "a") as file:
                file.write(f"{said.body['step']}\n")


if rank == 1:
    (folder / f"pid-{attempt}").write_text(str(os.getpid()))
recipe = from_yaml((folder / "run.yaml").read_text(), source="run.yaml")
start = max(steps(url), default=0)
job = Job(recipe, plain(Shape(workers=2)), url, data, attempt + 1, start)
meet = Place(os.getpid(), "here", "127.0.0.1", 29700 + attempt, "")
pipe: Any = Pipe()
print(work(rank, job, meet, Board(multiprocessing.get_context("spawn")), pipe))
