"""Faults inside a rank, at the sample that a test names: no number, no progress, a signal.

A template that imports this module hands its patch on to every rank that is forked from it.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray
import torch

from diptych.cluster.host import Host
from diptych.cluster.worker import open_plan
from diptych.data.batch import Batch
from diptych.data.index import LineCache
from diptych.pretrain.run import Run
from diptych.pretrain.task import Losses, Task

_NAP_S = 0.15
_HERE = "DIPTYCH_TEST_FAULT"


class FaultyHost(Host):
    """`FaultyHost(what=..., key=..., times=1, mark=folder)`.

    `what` is `nan`, `sleep`, the name of a signal that the rank sends itself, or `host`: SIGTERM to
    its host. With `nap` and `host`, each forward pass takes long, whatever the key.
    """

    template: ClassVar[list[str]] = [*Host.template, "rank_faults"]

    def __init__(self, **fault: Any) -> None:
        os.environ[_HERE] = json.dumps(fault)
        super().__init__()


def key_of(run: Run, step: int, rank: int) -> str:
    """Name of a sample that a rank of two meets at a step."""
    plan = open_plan(run)
    ref = plan.rows(step, rank, 2)[0]
    lines = LineCache(plan.sources[ref.source].manifest)
    return f"{plan.label(ref)}/{lines.of(ref.shard).entry(ref.position).record.key}"


def spawner(**fault: Any) -> Callable[[int, int], Any]:
    """Stands in for `crew.spawn`: hosts with a fault."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

    def spawn(cpus: int, gpus: int) -> Any:
        kind = ray.remote(FaultyHost).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_concurrency=8,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
        return kind.remote(**fault)

    return spawn


def strike(fault: dict[str, Any], batch: Batch) -> bool:
    """Whether a batch holds the sample that the fault waits for, and it may still strike."""
    if fault["key"] not in batch.keys:
        return False
    struck = len(list(Path(fault["mark"]).iterdir()))
    (Path(fault["mark"]) / str(struck)).touch()
    return struck < fault["times"]


def _patch(fault: dict[str, Any]) -> None:
    forward = Task.forward

    def faulty(self: Task, batch: Batch) -> Losses:
        losses = forward(self, batch)
        if fault["what"] in ("nap", "host"):
            time.sleep(_NAP_S)
        if not strike(fault, batch):
            return losses
        if fault["what"] == "nan":
            return Losses(total=losses.total * torch.nan, sums=losses.sums)
        if fault["what"] == "sleep":
            time.sleep(3600)
        if fault["what"] == "host":  # between it and the rank is the template
            os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.Signals[fault["what"]])
        return losses

    Task.forward = faulty


if _HERE in os.environ:
    _patch(json.loads(os.environ[_HERE]))
