"""The ranks of `chaos_save.py`: they train, keep checkpoints, and one dies at some byte of one.

On a disk the bytes are counted where they are written, in the rank, which then kills itself; on the
way to a bucket a relay counts them, forwards so many and no more, and kills it.
"""

import asyncio
import io
import os
import signal
import types
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diptych.cluster.checkpoint import Writer
from diptych.cluster.engine import DeepSpeedEngine, join_group
from diptych.cluster.journal import Journal
from diptych.cluster.shapes import Shape
from diptych.data import disk, storage
from diptych.pretrain.checkpoint import open_checkpoint

from . import model
from .model import Size
from .stream.wire import Wire

WORLD, INTERVAL = 2, 2
SIZE = Size(width=32, depth=2, rows=4, ema=True)
_BATCHES = 8
_PAGE = 4096


class Task(NamedTuple):
    """What a rank is to do."""

    run: str
    attempt: int
    start: int
    until: int
    port: int
    die_at: int
    """Bytes that this rank writes before it dies; negative: it does not."""
    bucket: dict[str, str]
    """Environment of the bucket's clients, by this rank's own way; empty for a disk."""


class Counter:
    """Counts the bytes that this process writes into files, and kills it at one of them."""

    def __init__(self, die_at: int) -> None:
        self.left, self.count = die_at, 0

    def allow(self, size: int) -> int:
        """How many of `size` bytes may still be written."""
        return size if self.left < 0 else min(size, self.left)

    def wrote(self, size: int, wanted: int) -> int:
        """Counts; kills where not all that was wanted may be written."""
        self.count += size
        if self.left >= 0:
            self.left -= size
            if size < wanted:
                os.kill(os.getpid(), signal.SIGKILL)
        return size

    def install(self) -> None:
        """Puts itself between our code and the files."""
        counter = self

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                view = memoryview(data).cast("B")
                allowed = counter.allow(len(view))
                return counter.wrote(super().write(view[:allowed]), len(view))

        def pwrite(handle: int, data: Any, at: int) -> int:
            allowed = counter.allow(len(data))
            whole = allowed if allowed == len(data) else allowed // _PAGE * _PAGE
            return counter.wrote(os.pwrite(handle, data[:whole], at), len(data))

        storage.open = lambda path, mode: File(path, mode)  # pyright: ignore
        words: Any = types.SimpleNamespace(**{**vars(os), "pwrite": pwrite})
        disk.os = words


class Trap(Wire):
    """A relay that forwards so many bytes to the bucket and then kills who sends them."""

    left, pid = -1, 0
    count = 0

    async def _relay(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: int
    ) -> None:
        if counted:
            return await super()._relay(source, sink, counted)
        try:
            while data := await source.read(1 << 16):
                self.count += len(data)
                if self.left >= 0:
                    data, self.left = data[: self.left], max(-1, self.left - len(data))
                    if self.left <= 0:
                        sink.write(data)
                        os.kill(self.pid, signal.SIGKILL)
                        return
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()


def work(rank: int, task: Task, pipe: Connection) -> None:
    """Trains from the newest checkpoint on; says of each checkpoint when it begins."""
    torch.set_num_threads(1)
    os.environ.update(task.bucket)
    warnings.simplefilter("ignore", FutureWarning)
    join_group(rank, WORLD, "127.0.0.1", task.port, gpu=False)
    run = model.recipe(SIZE)
    writer = Writer(
        run=task.run,
        recipe="chaos",
        rank=rank,
        world=WORLD,
        attempt=task.attempt,
        keep=2,
        journal=Journal(rank),
        stream=lambda step: {},
    )
    engine = DeepSpeedEngine(model.task(run), run, Shape(workers=WORLD), writer)
    if task.start:
        engine.restore(open_checkpoint(task.run, task.start))
    batches = model.batches(SIZE, _BATCHES, rank, WORLD)
    counter = Counter(-1 if task.bucket else task.die_at)
    counter.install()
    pipe.send(("training", task.start))
    try:
        for step in range(task.start, task.until):
            engine.step(batches[step % _BATCHES], 1e-3)
            if (step + 1) % INTERVAL == 0:
                engine.join()  # as `save` would: until then the one before is being written
                pipe.send(("saving", step + 1))
                engine.save(step + 1, wait=False)
    except RuntimeError as err:  # of gloo: the other rank is gone
        pipe.send(("cut", str(err)))
    engine.join()
    pipe.send(("wrote", counter.count))


def newest(run: str) -> int:
    """The newest checkpoint's step, once every byte of it has been read and checked."""
    try:
        found = open_checkpoint(run)
    except Exception as err:
        if "no complete checkpoint" in str(err):
            return 0
        raise
    for kind in found.kinds:
        found.weights(kind)
    return found.step


def unfinished(run: Path) -> list[str]:
    """Files below a run that were begun and never came to be."""
    return [path.name for path in run.rglob(".*.part")]
