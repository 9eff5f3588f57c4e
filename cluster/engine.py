"""A task under DeepSpeed on one rank: step, sum, save, restore."""

import contextlib
import importlib
import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from ..data.batch import Batch
from ..errors import ClusterError, RecipeError
from ..pretrain import ema
from ..pretrain.checkpoint import EMA, WEIGHT, Checkpoint, base_digest
from ..pretrain.compiled import compile_blocks
from ..pretrain.optim import adamw
from ..pretrain.run import Run
from ..pretrain.task import Losses, Task, merge
from . import partition
from .checkpoint import Snapshot, Writer, restore
from .shapes import Shape, deepspeed_config


class DeepSpeedEngine:
    """`pretrain.loop.Engine` on a DeepSpeed rank."""

    def __init__(self, task: Task, run: Run, shape: Shape, writer: Writer) -> None:
        require_offload(shape)
        require_compiler(shape)
        require_dimensions(task)
        if shape.recompute:
            task.recompute()
        if shape.compile:
            compile_blocks(task.model)
        self.base = base_digest(task)
        optimiser = adamw(task, run.optim)
        for group in optimiser.param_groups:
            group["lr"] = 0.0  # ZeRO takes one empty step to make its state; it must move nothing
        self.task, self.writer = task, writer
        self.rank, self.micro = dist.get_rank(), shape.micro_rows(run)
        self.engine: Any = deepspeed.initialize(
            model=task, optimizer=optimiser, config=deepspeed_config(run, shape)
        )[0]
        partition.keep_whole(self.engine, task.shared)
        partition.set_steps(self.engine, 0)
        if self.engine.optimizer is optimiser:
            optimiser.register_step_pre_hook(_refuse_non_finite)
        self.ema, self.steps = run.ema, 0
        mine = partition.owned(self.engine, self.rank, shape.workers) if run.ema else []
        self._weights = [piece for piece in mine if piece[1] == WEIGHT]
        self._averages = [(name, EMA, at, data.clone()) for name, _, at, data in self._weights]
        self._saving: threading.Thread | None = None
        self._snapshot: Snapshot | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over weights and optimiser state, whatever world size or stage wrote them."""
        restore(self.engine, checkpoint, self._averages, self.base)
        self.steps = checkpoint.step

    def step(self, batch: Batch, lr: float) -> Losses:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self._forget_gradients()
        done: list[Losses] = []
        for first in range(0, batch.rows, self.micro):
            losses: Losses = self.engine(batch.take(first, first + self.micro))
            self.engine.backward(losses.total * _poison(losses.total.detach()))
            if first + self.micro >= batch.rows:
                self._copied()
            self.engine.step()
            done.append(losses)
        applied: bool = self.engine.was_step_applied()
        if self.ema and applied:
            pairs = ([piece[3] for piece in held] for held in (self._averages, self._weights))
            ema.average(self.ema, *pairs, step=self.steps)
        self.steps += 1
        return merge(done)._replace(applied=applied)

    def _forget_gradients(self) -> None:
        """Of what is not used in a step ZeRO-3 would count the last gradient again, in its norm."""
        kept: Tensor | None = getattr(self.engine.optimizer, "grad_partitions_flat_buffer", None)
        if self.task.mixing and kept is not None:
            kept.zero_()

    def sum(self, values: list[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the task computes with the moving average; every rank enters it.

        Weights and averages change places and back, so that nothing of them is held twice.
        """
        self._copied()
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for (*_, average), (*_, weight) in zip(self._averages, self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        partition.spread(self.engine)
        partition.renew(self.engine)

    def save_s(self) -> float:
        writer = self.writer
        return writer.takes_s(
            [*partition.owned(self.engine, writer.rank, writer.world), *self._averages]
        )

    def save(self, step: int, *, wait: bool) -> None:
        self.join()
        snapshot = self.writer.snapshot(self.engine, step, self._averages, self.base)
        self._snapshot = snapshot
        self._saving = threading.Thread(target=self.writer.write, args=(snapshot,))
        self._saving.start()
        if wait:
            self.join()

    def _copied(self) -> None:
        """Waits until the weights may change: a checkpoint may still be copying them."""
        if self._snapshot:
            self._snapshot.copied.wait()
            self._snapshot = None

    def join(self) -> None:
        """Waits for the checkpoint under way; its error is this rank's error."""
        if self._saving:
            self._saving.join()
            self._saving = None
        self.writer.raise_fault()


def _poison(loss: Tensor) -> Tensor:
    """1, or NaN where the loss is not finite.

    Then no gradient is finite either, on any rank, and so DeepSpeed takes the step nowhere: it
    looks at the norm over all ranks. That costs no collective of its own.
    """
    return torch.where(torch.isfinite(loss), 1.0, torch.nan).to(loss.dtype)


def _refuse_non_finite(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step without ZeRO, where DeepSpeed itself would apply NaN: leaves nothing to apply.

    Gradients were summed over the ranks, so all ranks find the same. DeepSpeed reads `overflow`.
    What was not used in this step has a gradient of 0, as it has with ZeRO or on several ranks:
    momentum and decay go on.
    """
    for group in optimiser.param_groups:
        for param in group["params"]:
            if param.grad is None and param.requires_grad:
                param.grad = torch.zeros_like(param)
    params = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    optimiser.overflow = not bool(torch.isfinite(norm))  # pyright: ignore[reportAttributeAccessIssue]
    if optimiser.overflow:  # pyright: ignore[reportAttributeAccessIssue]
        for param in params:
            param.grad = None


def require_offload(shape: Shape) -> None:
    """Asks, of this machine, whether DeepSpeed can offload to its disk, if it is to.

    Raises:
        ClusterError: it cannot.
    """
    if shape.nvme is None:
        return
    ops: Any = importlib.import_module("deepspeed.ops.op_builder")
    if not ops.AsyncIOBuilder().is_compatible(verbose=False):
        raise ClusterError(
            f"offload to {shape.nvme}: DeepSpeed cannot build its async_io here. Install libaio's "
            "headers (libaio-dev) and a C++ compiler on every node, or offload to 'cpu'."
        )


def require_dimensions(task: Task) -> None:
    """Refuses parameters without a dimension: DeepSpeed sends bytes, which no scalar is viewed as.

    Raises:
        RecipeError: there is one.
    """
    if scalars := [name for name, param in task.named_parameters() if not param.dim()]:
        raise RecipeError(
            f"parameter {scalars[0]} has no dimension, which DeepSpeed cannot send to other ranks. "
            "Make it one of shape (1,)."
        )


def require_compiler(shape: Shape) -> None:
    """Asks, of this machine, whether torch.compile finds the compiler it calls, if it is to.

    Raises:
        ClusterError: it does not.
    """
    names = ("CC", "gcc", "clang") if shape.gpus_per_worker else ("CXX", "g++", "clang++")
    if shape.compile and not any(map(shutil.which, (os.environ.get(names[0], ""), *names[1:]))):
        raise ClusterError(
            f"compile: host {socket.gethostname()} has no compiler for torch.compile. Install "
            f"{names[1]} on every node, name another in ${names[0]}, or set compile=false in the "
            "shape."
        )


def join_group(rank: int, world: int, address: str, port: int, *, gpu: bool) -> None:
    """Makes this process rank `rank` of a process group: NCCL with a GPU, gloo without."""
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=world,
    )
    adopt_group(gpu=gpu)


def adopt_group(*, gpu: bool) -> None:
    """Has DeepSpeed use the process group that this process is a member of."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    os.environ["LOCAL_RANK"] = "0"  # a worker sees one GPU, its own
    if gpu:
        torch.cuda.set_device(0)  # Ray shows a worker only its own GPU
    else:
        # DeepSpeed would compile a shared-memory all-reduce with the user's compiler, for a
        # minute, on every new machine. gloo is good enough where there is no GPU.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False
    )
