"""One cell in this process: the recipe that `diptych finetune` writes, trained without a cluster.

The verbs start Ray, DeepSpeed and their imports for each run, which on two cores takes as long as
300 steps of so small a model; a table of dozens of cells needs them once at most. A cell is the
smallest thing that is resumed: one that was interrupted begins again.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from diptych.config import digest
from diptych.data import tokens
from diptych.data.loader import Loader
from diptych.finetune.start import fresh_task
from diptych.pretrain import checkpoint
from diptych.pretrain.charts import open_plan
from diptych.pretrain.optim import adamw, lr_at
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.slices import put_slices
from diptych.pretrain.task import Task

Look = Callable[[int], object]
"""Told of each step whose checkpoint is there."""


def train(run: Run, place: RunDir, looked: Look) -> int:
    """Trains a run from its first step; returns how many numbers are trained.

    Args:
        run: with `checkpoint_steps`, at which `looked` is called.
        place: of the run; its checkpoints are as those of `diptych train`, to sample and export.
        looked: draws and measures.
    """
    text = tokens.load(run.data.tokenizer, run.model.tokens).grown(run.new_words)
    place.create(run, {"data": open_plan(run).data})
    Path(place.at("tokenizer.json").removeprefix("file://")).write_text(text.tokenizer.to_str())
    task = fresh_task(run, text)
    for step in _steps(task, run, text):
        if step % run.checkpoint_steps == 0:
            _keep(task, run, place, step)
            with torch.random.fork_rng():
                looked(step)
    return sum(param.numel() for param in task.parameters() if param.requires_grad)


def emptied(folder: Path) -> None:
    """Removes what an interrupted cell left, so that its steps are those of one run."""
    if folder.exists():
        shutil.rmtree(folder)


def _steps(task: Task, run: Run, text: tokens.Text) -> Iterator[int]:
    """The number of each step once it is taken."""
    plan = open_plan(run)
    optimiser = adamw(task.train(), run.optim)
    loader = Loader(
        plan, text, run.rows, stop=run.steps, threads=1, joined=run.joined(plan)
    )  # fmt: skip
    for step, batch in loader:
        for group in optimiser.param_groups:
            group["lr"] = lr_at(run.optim, step, run.steps)
        optimiser.zero_grad()
        task(batch).total.backward()
        trained = [param for param in task.parameters() if param.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, run.optim.clip)
        optimiser.step()
        yield step + 1


def _keep(task: Task, run: Run, place: RunDir, step: int) -> None:
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    pieces = [(name, checkpoint.WEIGHT, 0, p.detach().view(-1)) for name, p in named]
    url = checkpoint.folder(place.url, step)
    checkpoint.commit(
        place.url,
        step,
        recipe=digest(run),
        base=checkpoint.base_digest(task),
        shapes={name: tuple(p.shape) for name, p in named},
        slices=put_slices(url, "attempt-1/rank-0.safetensors", pieces),
        extra={},
    )
