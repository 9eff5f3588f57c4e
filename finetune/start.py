"""Starting from what another run wrote: its weights, where names and shapes agree."""

from dataclasses import dataclass
from typing import Literal

import torch

from ..data import storage, tokens
from ..data.tokens import Text
from ..errors import CheckpointError
from ..pretrain.checkpoint import (
    EMA,
    WEIGHT,
    Checkpoint,
    base_digest,
    open_checkpoint,
    require_base,
)
from ..pretrain.run import Run
from ..pretrain.task import Task

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Started:
    """What was taken over, and what begins fresh."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    """In the checkpoint, but not in this task: the heads of other objectives."""


def start(task: Task, checkpoint: Checkpoint, kind: str = WEIGHT) -> Started:
    """Copies into the task every weight of the checkpoint that it has too; frozen ones stay.

    Raises:
        CheckpointError: the model itself differs in a name or a shape.
    """
    state = task.state_dict()
    taken = [name for name in state if checkpoint.shapes.get(name) == tuple(state[name].shape)]
    fresh = [name for name in state if name not in taken]
    frozen = {name for name, param in task.named_parameters() if not param.requires_grad}
    odd = [name for name in fresh if name.startswith("model.") and name not in frozen]
    if odd:
        theirs = checkpoint.shapes.get(odd[0], "nothing")
        raise CheckpointError(
            f"{checkpoint.url} does not fit the model: {odd[0]} is {tuple(state[odd[0]].shape)} "
            f"here and {theirs} there ({len(odd)} differ). Use the same model sizes."
        )
    checkpoint.fill((name, kind, 0, state[name].view(-1)) for name in taken)
    left = [name for name in checkpoint.shapes if name not in state]
    return Started(tuple(taken), tuple(fresh), tuple(left))


def fresh_task(run: Run, text: Text) -> Task:
    """The run's task as it is before its first step, weights of `start_from` included.

    Raises:
        CheckpointError: the run to start from has no checkpoint, other sizes or another tokenizer.
    """
    torch.manual_seed(run.seed)
    task = run.task(text)
    if run.start_from:
        start(task, open_checkpoint(run.start_from))
        _require_words(run.start_from, text)
    return task


def _require_words(source: str, text: Text) -> None:
    """Refuses word embeddings that belong to other words; their number may well be the same."""
    url = storage.join(source, "tokenizer.json")
    if storage.exists(url):
        theirs = tokens.load(url, text.length)
        if theirs.tokenizer.get_vocab() != text.tokenizer.get_vocab():
            raise CheckpointError(
                f"{source} was trained with another vocabulary than this run's. "
                f"Use its own: --set data.tokenizer={url}"
            )


def kept(checkpoint: Checkpoint, weights: Weights | None) -> Weights:
    """Which weights of a checkpoint are meant.

    Raises:
        CheckpointError: the average, and there is none.
    """
    there = EMA in checkpoint.kinds
    if weights == "ema" and not there:
        raise CheckpointError(
            f"{checkpoint.url} holds no moving average. Say --weights raw, or train with "
            "--set ema.decay=0.999."
        )
    return weights or ("ema" if there else "raw")


def trained_task(
    run: Run, text: Text, checkpoint: Checkpoint, weights: Weights | None = None
) -> Task:
    """The run's task with the weights of one of its checkpoints, in evaluation mode.

    `weights` are their moving average (`ema`) or the last ones (`raw`); by default the average,
    where the run keeps one.

    Raises:
        CheckpointError: there is no average, or the checkpoint is of another model.
    """
    task = fresh_task(run, text) if checkpoint.base else run.task(text)
    require_base(checkpoint, base_digest(task))
    found = start(task, checkpoint, WEIGHT if kept(checkpoint, weights) == "raw" else EMA)
    frozen = {name for name, param in task.named_parameters() if not param.requires_grad}
    if lacking := [name for name in found.fresh if name not in frozen]:
        raise CheckpointError(f"{checkpoint.url} lacks {', '.join(lacking[:3])}.")
    return task.eval()
