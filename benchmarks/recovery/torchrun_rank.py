"""One rank as torchrun starts it: `work` of cluster/worker.py, without a host."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from diptych.benchmarks.recovery.diary import Diary, Pipe
from diptych.cluster.job import Board, Job, Place
from diptych.cluster.shapes import Shape
from diptych.cluster.worker import work
from diptych.config import from_yaml, plain
from diptych.pretrain.checkpoint import steps

folder, url, data = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
diary = Diary(folder / "diary")
diary.write(f"pid {rank}", attempt, os.getpid())
recipe = from_yaml((folder / "run.yaml").read_text(), source="run.yaml")
start = max(steps(url), default=0)
job = Job(recipe, plain(Shape(workers=2)), url, data, attempt + 1, start)
port = int((folder / "port").read_text()) + attempt
meet = Place(os.getpid(), "here", "127.0.0.1", port, "")
pipe: Any = Pipe(diary, attempt)
outcome = work(rank, job, meet, Board(multiprocessing.get_context("spawn")), pipe)
sys.exit(0 if outcome.kind == "done" else f"{outcome.kind}: {outcome.error or outcome.text}")
