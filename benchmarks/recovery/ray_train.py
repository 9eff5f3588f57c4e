"""The same run by plain Ray Train: TorchTrainer with FailureConfig, on a cluster that is up."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from diptych.benchmarks.recovery.diary import Diary, Pipe


def loop(told: dict[str, Any]) -> None:
    """A worker: the engine, loop and checkpoints of a rank, in Ray Train's process group."""
    import ray.train
    import torch
    import torch.distributed as dist

    from diptych.cluster.engine import adopt_group
    from diptych.cluster.job import Board, Job
    from diptych.cluster.shapes import Shape
    from diptych.cluster.worker import Rank, learn
    from diptych.config import from_yaml, plain
    from diptych.data import storage
    from diptych.finetune.parts import KINDS
    from diptych.pretrain.checkpoint import claim, steps
    from diptych.pretrain.run import parse_run

    os.environ.update(told["environment"])
    storage.forget_filesystems()
    folder, url = Path(told["folder"]), told["url"]
    rank = ray.train.get_context().get_world_rank()
    adopt_group(gpu=False)
    begin = torch.zeros(2, dtype=torch.long)
    if rank == 0:
        number = 1
        while not claim(url, number):
            number += 1
        begin[:] = torch.tensor([number, max(steps(url), default=0)])
    dist.broadcast(begin, 0)
    attempt, start = begin.tolist()
    diary = Diary(folder / "diary")
    diary.write(f"pid {rank}", attempt, os.getpid())
    recipe, shape = (
        from_yaml((folder / "run.yaml").read_text(), source="run.yaml"),
        Shape(workers=2),
    )
    run = parse_run(recipe, KINDS, source="run.yaml")
    job = Job(recipe, plain(shape), url, told["data"], attempt, start)
    pipe: Any = Pipe(diary, attempt)
    board = Board(multiprocessing.get_context("spawn"))
    import signal

    signal.signal = lambda *_: None  # pyright: ignore  # Ray Train's loop is not the main thread
    learn(Rank(rank, job, run, board, pipe), shape, "here")


def main(folder: str, url: str, data: str, address: str) -> None:
    """The driver."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address=address, log_to_driver=False)
    names = [n for n in os.environ if n.startswith(("AWS_", "PYTHON", "OMP_"))]
    told = {"folder": folder, "url": url, "data": data}
    TorchTrainer(
        loop,
        train_loop_config={**told, "environment": {name: os.environ[name] for name in names}},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="bench", storage_path=folder, failure_config=FailureConfig(max_failures=-1)
        ),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
