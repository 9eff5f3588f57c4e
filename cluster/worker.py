"""One rank: the only place where data, model, engine and run directory meet."""

import logging
import math
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..config import digest
from ..data import index, storage, tokens
from ..data.holes import Holes
from ..data.loader import Loader
from ..data.plan import Plan, Source
from ..errors import CheckpointError, DataError
from ..finetune.parts import KINDS
from ..finetune.start import fresh_task
from ..pretrain.checkpoint import open_checkpoint
from ..pretrain.loop import train
from ..pretrain.run import Run, parse_run
from ..pretrain.rundir import RunDir
from . import journal
from .checkpoint import Writer
from .job import Event, Job, Place
from .journal import Journal
from .shapes import Shape

log = logging.getLogger("diptych")


class Worker:
    """A Ray actor: `run` trains in one thread while the others answer the driver."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._journal = Journal(rank)

    def where(self) -> Place:
        """This process, and a free port on its node for the group to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        address = ray.util.get_node_ip_address()
        return Place(pid=os.getpid(), host=socket.gethostname(), address=address, port=port)

    def drain(self) -> list[Event]:
        """What happened since the last call."""
        found: list[Event] = []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def stop(self) -> None:
        """Asks for a checkpoint and an end at the next report."""
        self._stop.set()

    def run(self, job: Job, meet: Place) -> int:
        """Trains from the newest complete checkpoint; returns the steps done in all."""
        try:
            return self._run(job, meet)
        except Exception:
            self._say(traceback.format_exc())
            raise

    def _run(self, job: Job, meet: Place) -> int:
        from .engine import DeepSpeedEngine, join_group  # imports deepspeed: seconds, once

        shape, world = job.shape, job.shape.workers
        torch.set_num_threads(shape.cpus_per_worker)
        join_group(self.rank, world, meet.address, meet.port, gpu=shape.gpus_per_worker > 0)
        run = parse_run(job.recipe, KINDS, source="recipe")
        place = RunDir(job.url)
        text = tokens.load(place.at("tokenizer.json"), run.model.tokens)
        plan = open_plan(run, job.data)
        checkpoint = open_checkpoint(job.url, job.start) if job.start else None
        if checkpoint and checkpoint.extra["stream"] != plan.state(job.start):
            raise CheckpointError(
                f"{checkpoint.url} was written on another sequence of batches "
                f"({checkpoint.extra['stream']}, here {plan.state(job.start)}). Start a new run."
            )
        writer = Writer(
            run=job.url,
            recipe=digest(run),
            rank=self.rank,
            world=world,
            attempt=job.attempt,
            keep=shape.keep_checkpoints,
            journal=self._journal,
            stream=plan.state,
        )
        holes = Holes(plan, run.data.faults, journal.holes(place, job.start))
        self._journal.holes = holes
        engine = DeepSpeedEngine(fresh_task(run, text), run, shape, writer)
        if checkpoint:
            engine.restore(checkpoint)
        self._say(f"attempt {job.attempt}: from step {job.start} on {meet.host}, world {world}")
        loader = Loader(
            plan,
            text,
            run.rows,
            rank=self.rank,
            world=world,
            start=job.start,
            stop=run.steps,
            threads=max(2, shape.cpus_per_worker),
            pin=shape.gpus_per_worker > 0,
            holes=holes,
        )
        return train(
            engine,
            loader,
            run,
            report=self._report,
            told=self._journal.note,
            stopping=self._stop.is_set,
        )

    def _report(self, row: dict[str, float]) -> None:
        self._journal.row(row)
        if self.rank == 0:
            self._events.put(Event("metrics", self.rank, row))

    def _say(self, text: str) -> None:
        self._events.put(Event("log", self.rank, {"text": text}))


def open_plan(
    run: Run, data: str | None = None, counted: Callable[[int], None] = lambda shards: None
) -> Plan:
    """The plan of a run's training data.

    Raises:
        DataError: `data` is given, and the dataset's digest is another.
    """
    sources = [
        Source(index.open_manifest(one.url), one.weight, name)
        for one, name in zip(run.data.sources, _names(run), strict=True)
    ]
    plan = Plan(sources, run.seed, run.batch, buckets=run.data.buckets, counted=counted)
    if data and plan.data != data:
        raise DataError(
            f"{' + '.join(one.url for one in run.data.sources)} changed since the run began "
            f"(digest {plan.data}, was {data}). "
            "Start a run under another name, or restore the data."
        )
    return plan


def settled(run: Run) -> Run:
    """The run with its epochs counted in steps."""
    if run.epochs is None:
        return run
    steps = max(1, math.ceil(run.epochs * open_plan(run).steps_per_epoch))
    return run.model_copy(update={"steps": steps, "epochs": None})


def _names(run: Run) -> list[str]:
    """What stands before the shards of each source: nothing, where there is but one."""
    names = [storage.name(one.url) for one in run.data.sources]
    if len(names) == 1:
        return [""]
    return [f"{name}.{n}" if names.count(name) > 1 else name for n, name in enumerate(names)]


def spawn(rank: int, shape: Shape, slots: Any) -> Any:
    """A worker as a Ray actor in its slot of a placement group; it is never restarted alone."""
    kind = ray.remote(Worker).options(
        num_cpus=shape.cpus_per_worker,
        num_gpus=shape.gpus_per_worker,
        max_concurrency=4,
        max_restarts=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(slots, rank),
    )
    return kind.remote(rank)
