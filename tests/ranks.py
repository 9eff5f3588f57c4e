"""Real ranks without Ray: DeepSpeed on gloo, in processes that are forked from one that has
imported it all, so that a group of any size begins within a fraction of a second.

`python ranks.py JOBS.json` runs jobs one after the other; `run` below is how tests call it.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

EVERYTHING = (
    "diptych.cluster.engine",
    "diptych.finetune.parts",
    "diptych.cluster.warm",
    "torch._dynamo",
    "deepspeed.utils.zero_to_fp32",
)
"""Imported once, before all forks: it is most of what a rank's beginning costs."""
DIFFUSERS = '"unet"', '"kl_autoencoder"', '"vq_autoencoder"'
"""Where jobs name one of these, ranks would import diffusers, each of them for seconds."""


def run(folder: Path, jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """Runs jobs, each `{"do": name, "shape": {...}, ...}`, and returns what rank 0 of each said."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(file)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads((folder / f"said-{number}.json").read_text()) for number in range(len(jobs))]


def batches(steps: int, rows: int = 8) -> list[Any]:
    """The same global batches for everybody."""
    import torch

    from diptych.data.batch import Batch

    draw = torch.Generator().manual_seed(1)
    return [
        Batch(
            keys=tuple(f"s/{row}" for row in range(rows)),
            draws_B=torch.randint(1 << 62, (rows,), generator=draw),
            image_BCHW=torch.randint(256, (rows, 3, 8, 8), generator=draw).to(torch.uint8),
            tokens_BL=torch.randint(4, 37, (rows, 4), generator=draw),
            real_BL=torch.ones(rows, 4, dtype=torch.bool),
            fields=({},) * rows,
        )
        for _ in range(steps)
    ]


class Rank:
    """One rank's engine on a tiny model of odd sizes, so that partitions are padded."""

    def __init__(self, job: dict[str, Any], rank: int, port: int) -> None:
        import torch

        from diptych.cluster.checkpoint import Writer
        from diptych.cluster.engine import DeepSpeedEngine, join_group
        from diptych.cluster.journal import Journal
        from diptych.cluster.shapes import Shape
        from diptych.finetune.parts import KINDS
        from diptych.pretrain.adapter import adapt
        from diptych.pretrain.mixing import mixing
        from diptych.pretrain.objective import Words
        from diptych.pretrain.run import parse_run
        from diptych.pretrain.task import Task

        torch.set_num_threads(1)
        self.job, self.rank, self.shape = job, rank, Shape(whole_below=20, **job["shape"])
        join_group(rank, self.shape.workers, "127.0.0.1", port, gpu=False)
        sizes = {"width": 12, "depth": 1, "heads": 2, "grid": 2, "stem": 4, "image_size": 8}
        values = {
            "name": "ranks",
            "model": {"kind": "vlp", "tokens": 4, "dropout": job.get("dropout", 0.0), **sizes},
            "objectives": [{"kind": "itm", "group": 2}, {"kind": "mrm"}, {"kind": "mlm"}],
            "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
            "optim": {"lr": 0.01},
            "ema": {"decay": 0.9},
            "batch": 8,
        }
        values |= job.get("recipe", {})
        self.settings = parse_run(values, KINDS, source="ranks")
        torch.manual_seed(0)
        words = Words(size=37, mask=3, special=(0, 1, 2, 3), empty=(1, 2))
        run = self.settings
        turns = mixing(run.seed, run.mixing, [objective.kind for objective in run.objectives])
        task = Task(run.model, run.objectives, words, turns, run.control)
        for param in task.model.parameters():
            param.data += job.get("other_base", 0.0)
        adapt(task, run.adapters)
        if task.control:
            task.control.begin(task.model)
        for name, param in task.named_parameters():
            if name.startswith(tuple(job.get("freeze", ()))):
                param.requires_grad = False
                param.data += job.get("shift", 0.0)
        self.writer = Writer(
            run=job.get("out", "/nowhere"),
            recipe="recipe",
            rank=rank,
            world=self.shape.workers,
            attempt=job.get("attempt", 1),
            keep=99,
            journal=Journal(rank),
            stream=lambda step: {},
        )
        self.engine = DeepSpeedEngine(task, self.settings, self.shape, self.writer)

    def step(self, step: int) -> float:
        """One step on this rank's rows; returns the loss over all rows."""
        import torch

        rows = 8 // self.shape.workers
        batch = batches(step + 1)[step].take(self.rank * rows, (self.rank + 1) * rows)
        batch = replace(batch, step=step)
        if self.job.get("short"):  # texts of 2 to 4 tokens
            length_B1 = 2 + batch.draws_B[:, None] % 3
            batch = replace(batch, real_BL=torch.arange(4) < length_B1)
        torch.manual_seed(step)
        loss = self.engine.step(batch, self.job.get("lr", 0.01)).total.item()
        return self.engine.sum([loss])[0] / self.shape.workers

    def train(self) -> Any:
        """Steps from 0, with a checkpoint before and after each; returns losses.

        After `theirs_at` steps DeepSpeed's own checkpoint is held against ours, at ZeRO 1 to 3.
        """
        self.engine.save(0, wait=True)
        losses: list[float] = []
        for step in range(self.job["steps"]):
            losses.append(self.step(step))
            self.engine.save(step + 1, wait=True)
            if step + 1 == self.job.get("theirs_at") and self.shape.zero_stage:
                theirs = f"{self.job['out']}/theirs"
                self.engine.engine.save_checkpoint(theirs)
                if self.rank == 0:
                    self.hold_against(theirs)
        return losses

    def hold_against(self, theirs: str) -> None:
        """Our newest weights are what DeepSpeed's own tool makes of its checkpoint."""
        import torch
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        from diptych.pretrain.checkpoint import open_checkpoint

        ours = open_checkpoint(self.job["out"]).weights()
        found: Any = get_fp32_state_dict_from_zero_checkpoint(theirs)
        assert ours.keys() == found.keys()
        for name, weights in ours.items():
            assert torch.equal(weights, found[name]), name

    def draw(self) -> Any:
        """As `train`, with a sheet of samples after each step where `sheets` is set."""
        from diptych.cluster.sheets import Sheets
        from diptych.data import tokens
        from diptych.pretrain.rundir import RunDir

        told: list[str] = []
        text = tokens.from_text(tokens.learn(["red blue"], 37), 4)
        place = RunDir(self.job["out"])
        sheets = Sheets(
            self.engine, self.settings, text, place, lambda done, name, url: told.append(url)
        )
        losses: list[float] = []
        for step in range(self.job["steps"]):
            losses.append(self.step(step))
            if self.job["sheets"]:
                sheets.draw(step + 1)
            self.engine.save(step + 1, wait=False)
        self.engine.join()
        return [losses, told]

    def load(self) -> Any:
        """Takes over each checkpoint of `runs`, saves it again, and takes one step more."""
        from diptych.errors import CheckpointError
        from diptych.pretrain.checkpoint import open_checkpoint

        losses: list[float] = []
        for number, run in enumerate(self.job["runs"]):
            checkpoint = open_checkpoint(run, self.job["step"])
            try:
                self.engine.restore(checkpoint)
            except CheckpointError as err:
                return str(err)
            self.compare()
            self.writer.run = f"{self.job['out']}/{number}"
            self.engine.save(checkpoint.step, wait=True)
            losses.append(self.step(checkpoint.step))
        return losses

    def resume(self) -> Any:
        """Takes over the checkpoint after `step` steps and goes on to `steps`; returns losses.

        Or what was said against the checkpoint.
        """
        from diptych.errors import CheckpointError
        from diptych.pretrain.checkpoint import open_checkpoint

        try:
            self.engine.restore(open_checkpoint(self.job["run"], self.job["step"]))
        except CheckpointError as err:
            return str(err)
        losses = [self.step(step) for step in range(self.job["step"], self.job["steps"])]
        self.engine.save(self.job["steps"], wait=True)
        return losses

    def compare(self) -> None:
        """The weights that are computed with are the fp32 ones, rounded."""
        import deepspeed
        import torch
        from deepspeed.utils import safe_get_full_fp32_param

        zero: Any = deepspeed.zero
        for name, param in self.engine.task.named_parameters():
            with zero.GatheredParameters([param], enabled=self.shape.zero_stage == 3):
                if self.shape.zero_stage and param.requires_grad:
                    ours = safe_get_full_fp32_param(param)
                    assert ours is not None and torch.equal(ours.to(param.dtype), param.data), name


def serve(job: dict[str, Any], rank: int, port: int, said: Path) -> None:
    """One rank of one job."""
    found = getattr(Rank(job, rank, port), job["do"])()
    if rank == 0:
        said.write_text(json.dumps(found))


def main(file: Path) -> None:
    """Runs the jobs of a file; ends at the first that fails."""
    jobs = file.read_text()
    drawn = any(kind in jobs for kind in DIFFUSERS)
    unet = ["diffusers.models.unets.unet_2d_condition"] if drawn else []
    for module in [*EVERYTHING, *unet]:
        importlib.import_module(module)
    for number, job in enumerate(json.loads(jobs)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children: list[int] = []
        for rank in range(job["shape"]["workers"]):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    serve(job, rank, port, file.parent / f"said-{number}.json")
                    code = 0
                except BaseException:
                    print(f"job {number} rank {rank}: {job}\n{traceback.format_exc()}", flush=True)
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
