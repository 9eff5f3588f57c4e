"""The ways to keep a checkpoint, each of the same DeepSpeed engine on every rank."""

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from diptych.cluster import partition
from diptych.cluster.engine import DeepSpeedEngine
from diptych.pretrain import slices

Finish = Callable[[], None]
"""Waits until the checkpoint is there."""
_WRITE = 4 << 20


def _nothing() -> None:
    """There is nothing to wait for."""


def _flushed(folder: Path, finish: Finish) -> Finish:
    """Besides, has what is written reach the disk, while training goes on: ours does that, too."""

    def flush() -> None:
        finish()
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    thread = threading.Thread(target=flush)
    thread.start()
    return thread.join


class Arms:
    """One rank's ways to keep the state of an engine in a folder."""

    def __init__(self, engine: DeepSpeedEngine, rank: int, world: int, run: str) -> None:
        self.engine, self.rank, self.world, self.run = engine, rank, world, run
        self.shared = engine.engine.zero_optimization_stage() > 0
        self._group: Any = dist.new_group(backend="gloo")  # for DCP's thread
        self._warm: Tensor | None = None

    def save(self, arm: str, folder: Path, step: int) -> Finish:
        """Keeps a checkpoint by an arm's name; an arm may be run twice, as `again`."""
        keep = getattr(self, "_" + arm.removesuffix(" again").replace(" ", "_").replace(".", "_"))
        folder.mkdir(parents=True, exist_ok=True)
        finish: Finish = keep(folder, step)
        return finish if "ours" in arm or arm.startswith("persist") else _flushed(folder, finish)

    def state(self) -> dict[str, Any]:
        """Weights and moments that this rank holds; without ZeRO, all of them."""
        base = partition.optimiser(self.engine.engine)
        weights = [p.data for group in base.param_groups for p in group["params"]]
        found = {f"weight/{n}": data for n, data in enumerate(weights)}
        for n, param in enumerate(p for group in base.param_groups for p in group["params"]):
            found |= {f"{kind}/{n}": base.state[param][kind] for kind in partition.MOMENTS}
        return found

    def _none(self, folder: Path, step: int) -> Finish:
        return _nothing

    def _ours(self, folder: Path, step: int) -> Finish:
        self.engine.save(step, wait=False)
        return self.engine.join

    def _torch_save(self, folder: Path, step: int) -> Finish:
        """Without ZeRO rank 0 writes and the others wait, as most scripts do; else each its own."""
        if self.shared or self.rank == 0:
            torch.save(self.state(), folder / f"rank-{self.rank}.pt")
        dist.barrier()
        return _nothing

    def _deepspeed(self, folder: Path, step: int) -> Finish:
        self.engine.engine.save_checkpoint(str(folder), tag="t", save_latest=False)
        return _nothing

    def _dcp(self, folder: Path, step: int) -> Finish:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp_save(self._named(), checkpoint_id=folder)
        return _nothing

    def _dcp_async(self, folder: Path, step: int) -> Finish:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer: Any = async_save(self._named(), checkpoint_id=folder, process_group=self._group)
        future: Future[Any] = answer
        return lambda: [future.result(), _nothing()][1]

    def _named(self) -> dict[str, Any]:
        """What differs between ranks gets names that do; DCP writes what is alike once."""
        prefix = f"rank-{self.rank}/" if self.shared else ""
        return {prefix + name: data for name, data in self.state().items()}

    def _persist_ours(self, folder: Path, step: int) -> Finish:
        self.engine.save(step, wait=True)
        dist.barrier()
        return _nothing

    def _persist_raw(self, folder: Path, step: int) -> Finish:
        """This rank's share from warm memory: write, fsync, and no more."""
        return self._raw(folder, 0)

    def _persist_raw_direct(self, folder: Path, step: int) -> Finish:
        """The same past the page cache."""
        return self._raw(folder, getattr(os, "O_DIRECT", 0))

    def _raw(self, folder: Path, flag: int) -> Finish:
        if self._warm is None:
            size = sum(
                p[3].numel() for p in partition.owned(self.engine.engine, self.rank, self.world)
            )
            self._warm = slices.aligned(-(-size // 1024) * 1024).fill_(1.0)
        view = slices.raw(self._warm)
        step = 32 << 20 if flag else _WRITE
        handle = os.open(folder / f"rank-{self.rank}", os.O_WRONLY | os.O_CREAT | flag, 0o644)
        try:
            done = 0
            while done < len(view):
                done += os.write(handle, view[done : done + step])
            os.fsync(handle)
        finally:
            os.close(handle)
        dist.barrier()
        return _nothing
