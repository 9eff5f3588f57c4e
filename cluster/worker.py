"""One rank: the only place where data, model, engine and run directory meet."""

import signal
import traceback
from math import inf
from multiprocessing.connection import Connection

import torch

from ..config import digest, parse
from ..data import tokens
from ..data.batch import Batch
from ..data.holes import Holes
from ..data.loader import Loader
from ..errors import CheckpointError, DiptychError
from ..finetune.parts import KINDS
from ..finetune.start import fresh_task
from ..pretrain.charts import open_plan
from ..pretrain.checkpoint import open_checkpoint
from ..pretrain.loop import Doing, Listener, train
from ..pretrain.run import Run, parse_run
from ..pretrain.rundir import RunDir
from . import journal
from .checkpoint import Writer
from .job import NEXT, NOW, Board, Event, Job, Outcome, Place
from .journal import Journal
from .shapes import Shape


class Rank(Listener):
    """What this rank's loop tells, and to whom."""

    def __init__(self, rank: int, job: Job, run: Run, board: Board, pipe: Connection) -> None:
        self.rank, self.job, self.run = rank, job, run
        self.journal = Journal(rank)
        self._board, self._pipe = board, pipe
        self._step, self._told_off, self._grace_s = job.start, False, job.shape["grace_s"]
        signal.signal(signal.SIGTERM, self._terminate)

    def told(self, step: int, batch: Batch) -> None:
        self._step = step
        self.journal.note(step, batch)

    def doing(self, what: Doing, step: int) -> None:
        self._board.doing("start" if what == "step" and step == self.job.start else what, step)

    def skipped(self, step: int, batch: Batch, blame: bool) -> None:
        if blame:
            body = {"what": "skip", "step": step, "keys": list(batch.keys)}
            self._pipe.send(Event("event", self.rank, body))

    def report(self, row: dict[str, float]) -> None:
        self.journal.row(row)
        if self.rank == 0:
            self._pipe.send(Event("metrics", self.rank, row))

    def drawn(self, step: int, name: str, url: str) -> None:
        """Tells of a sheet of samples."""
        self._pipe.send(Event("picture", self.rank, {"step": step, "name": name, "url": url}))

    def stopping(self) -> bool:
        due = (self._step + 1) % self.run.checkpoint_steps == 0
        return self._told_off or self._board.wish == NOW or (self._board.wish == NEXT and due)

    def say(self, text: str) -> None:
        """Puts a line into this rank's log."""
        self._pipe.send(Event("log", self.rank, {"text": text}))

    def _terminate(self, *_: object) -> None:
        """SIGTERM: all ranks keep a checkpoint while there is time."""
        self._told_off = True
        self._board.ask(NOW, self._grace_s)

    def left_s(self) -> float:
        return self._board.left_s

    def hurried(self, step: int, needs_s: float, left_s: float, keeps: bool) -> None:
        """Every rank whose machine has an end tells what was decided."""
        if left_s < inf:
            does = "it is kept" if keeps else "it would come too late, so an earlier one counts"
            needs = f"a checkpoint of step {step} takes {needs_s:.1f} s"
            text = f"{left_s:.1f} s are left here, {needs}: {does}"
            self._pipe.send(Event("event", self.rank, {"what": "preemption", "text": text}))


def work(rank: int, job: Job, meet: Place, board: Board, pipe: Connection) -> Outcome:
    """Trains as one rank, from the newest complete checkpoint on, and says how it ended."""
    run = parse_run(job.recipe, KINDS, source="recipe")
    listener = Rank(rank, job, run, board, pipe)
    try:
        return Outcome("done", _train(listener, meet))
    except DiptychError as err:
        listener.say(traceback.format_exc())
        return Outcome("failed", error=err)
    except Exception as err:
        listener.say(traceback.format_exc())
        text = f"{type(err).__name__}: {err}"
        return Outcome("cut" if _is_cut(err) else "failed", text=text)


def _train(listener: Rank, meet: Place) -> int:
    from .engine import join_group  # imports deepspeed; the template has it

    shape = parse(Shape, listener.job.shape, source="shape")
    gpu = shape.gpus_per_worker > 0
    join_group(listener.rank, shape.workers, meet.address, meet.port, gpu=gpu)
    return learn(listener, shape, meet.host)


def learn(listener: Rank, shape: Shape, host: str) -> int:
    """Trains as a member of a process group that there is; returns the steps done.

    Args:
        listener: which rank, of which run.
        shape: its `workers` are those of this group.
        host: of rank 0, for the log.
    """
    from .engine import DeepSpeedEngine
    from .sheets import Sheets

    rank, job, run = listener.rank, listener.job, listener.run
    torch.set_num_threads(shape.cpus_per_worker)
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
        rank=rank,
        world=shape.workers,
        attempt=job.attempt,
        keep=shape.keep_checkpoints,
        journal=listener.journal,
        stream=plan.state,
        say=listener.say,
    )
    holes = Holes(plan, run.data.faults, journal.holes(place, job.start))
    listener.journal.holes = holes
    engine = DeepSpeedEngine(fresh_task(run, text), run, shape, writer)
    if checkpoint:
        engine.restore(checkpoint)
    where = f"{host}, world {shape.workers}"
    listener.say(f"attempt {job.attempt}: from step {job.start} on {where}")
    loader = Loader(
        plan,
        text,
        run.rows,
        rank=rank,
        world=shape.workers,
        start=job.start,
        stop=run.steps,
        threads=max(2, shape.cpus_per_worker),
        pin=shape.gpus_per_worker > 0,
        holes=holes,
        joined=run.joined(plan),
    )
    sheets = Sheets(engine, run, text, place, listener.drawn)
    return train(engine, loader, run, listener, sheets.draw)


def _is_cut(err: Exception) -> bool:
    """Whether an error says that another rank is gone; gloo's are plain RuntimeErrors."""
    text = str(err).lower()
    return isinstance(err, torch.distributed.DistError) or any(
        sign in text for sign in ("gloo", "nccl", "connection closed", "connection reset")
    )
