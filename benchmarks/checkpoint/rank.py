"""One rank of the benchmark: trains, keeps a checkpoint by some arm, and says what it took."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diptych.cluster.checkpoint import Writer
from diptych.cluster.engine import DeepSpeedEngine
from diptych.cluster.journal import Journal
from diptych.cluster.shapes import Shape
from diptych.pretrain.checkpoint import open_checkpoint

from .. import model
from ..model import Size
from .arms import Arms

_LR = 1e-4


class Rank:
    """Keeps its engine through all rounds."""

    def __init__(
        self, rank: int, world: int, size: Size, stage: Any, home: Path, after: int
    ) -> None:
        self.rank, self.home, self.after = rank, home, after
        run = model.recipe(size)
        writer = Writer(
            run=str(home / "ours"),
            recipe="bench",
            rank=rank,
            world=world,
            attempt=1,
            keep=1,
            journal=Journal(rank),
            stream=lambda step: {},
        )
        shape = Shape(workers=world, zero_stage=stage)
        self.engine = DeepSpeedEngine(model.task(run), run, shape, writer)
        self._batches = model.batches(size, 4, rank, world)
        self._step = 0
        for _ in range(2):
            self._train()
        self.arms = Arms(self.engine, rank, world, str(home / "ours"))

    def facts(self) -> dict[str, Any]:
        """Parameters, and bytes of fp32 weights and moments of all ranks together."""
        count = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.task.parameters())
        return {"parameters": count, "bytes": 12 * count}

    def turn(self, arm: str) -> dict[str, float]:
        """One step, the checkpoint, `after` steps, and the wait for it, if it is not there yet.

        Arms that persist do not train: the seconds are those until all ranks have it on disk.
        """
        folder = self.home / "theirs" / f"{self._step:06d}"
        steps = 0 if arm.startswith("persist") else self.after
        if steps:
            self._train()
        dist.barrier()
        began, cpu, stolen = time.perf_counter(), time.process_time(), _stolen()
        finish = self.arms.save(arm, folder, self._step)
        stall = time.perf_counter() - began
        for _ in range(steps):
            self._train()
        trained = time.perf_counter() - began
        finish()
        dist.barrier()
        row = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
        row |= {"stolen_s": _stolen() - stolen}
        row |= {"stall_s": stall, "tail_s": row["wall_s"] - trained}
        self._step += steps == 0
        return row

    def settle(self, arm: str) -> dict[str, float]:
        """Bytes that the arm left on disk; the peers' are deleted, and the disk gets quiet."""
        dist.barrier()
        found = 0
        if self.rank == 0:
            place = self.home / ("ours" if "ours" in arm else "theirs")
            found = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            shutil.rmtree(self.home / "theirs", ignore_errors=True)
        os.sync()
        dist.barrier()
        return {"disk_gb": found / 1e9}

    def check(self) -> bool:
        """Whether our newest checkpoint holds what this rank has, to the bit."""
        from diptych.cluster import partition

        self.engine.save(self._step, wait=True)
        dist.barrier()
        found = open_checkpoint(str(self.home / "ours"))
        return found.step == self._step and all(
            torch.equal(found.read(name, kind, at, data.numel()), data)
            for name, kind, at, data in partition.held(self.engine.engine)
        )

    def _train(self) -> None:
        self.engine.step(self._batches[self._step % len(self._batches)], _LR)
        self._step += 1


def _stolen() -> float:
    """CPU seconds that the hypervisor has kept from this machine; its disks may cost them."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")
