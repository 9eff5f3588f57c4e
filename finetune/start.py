"""Starting from what another run wrote: its weights, where names and shapes agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import load
from torch import Tensor

from ..data import storage, tokens
from ..data.tokens import Text
from ..errors import CheckpointError
from ..pretrain.adapter import adapt
from ..pretrain.bert import start_words
from ..pretrain.checkpoint import (
    EMA,
    WEIGHT,
    Checkpoint,
    base_digest,
    open_checkpoint,
    require_base,
)
from ..pretrain.denoiser import Denoiser
from ..pretrain.diffusion.context import ClipContext
from ..pretrain.models.unet import ConditionalUnet
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.task import Task
from . import clip_folder, hub_folder
from .foreign import Foreign, open_foreign
from .foreign_recipe import require_like, words_of
from .merge import plain_weights
from .parts import KINDS

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Started:
    """What was taken over, and what begins fresh."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    """In the checkpoint, but not in this task: the heads of other objectives."""
    widened: tuple[str, ...] = ()
    """What sees more channels here than there; of the new ones it begins with 0."""


def start(task: Task, checkpoint: Checkpoint, kind: str = WEIGHT) -> Started:
    """Copies into the task every weight of the checkpoint that it has too; frozen ones stay.

    Raises:
        CheckpointError: the model itself differs in a name or a shape.
    """
    found = _compare(task, checkpoint.shapes, checkpoint.url)
    state = task.state_dict()
    checkpoint.fill((name, kind, 0, state[name].view(-1)) for name in found.taken)
    for name in found.widened:
        theirs = state[name].new_empty(checkpoint.shapes[name])
        checkpoint.fill([(name, kind, 0, theirs.view(-1))])
        _widen(state[name], theirs)
    return found


def start_plain(task: Task, weights: Mapping[str, Tensor], url: str) -> Started:
    """Copies into the task every one of these weights that it has too.

    Raises:
        CheckpointError: as `start`.
    """
    found = _compare(task, {name: tuple(each.shape) for name, each in weights.items()}, url)
    state = task.state_dict()
    with torch.no_grad():
        for name in found.taken:
            state[name].copy_(weights[name])
    for name in found.widened:
        _widen(state[name], weights[name])
    return found


@torch.no_grad()
def _widen(ours: Tensor, theirs: Tensor) -> None:
    ours.zero_()
    ours[:, : theirs.shape[1]] = theirs


def _compare(task: Task, shapes: Mapping[str, tuple[int, ...]], url: str) -> Started:
    state = task.state_dict()
    taken = [name for name in state if shapes.get(name) == tuple(state[name].shape)]
    widened = [name for name in _entrances(task) if _wider(state[name], shapes.get(name, ()))]
    fresh = [name for name in state if name not in (*taken, *widened)]
    frozen = {name for name, param in task.named_parameters() if not param.requires_grad}
    odd = [name for name in fresh if name.startswith("model.") and name not in frozen]
    if odd:
        theirs = shapes.get(odd[0], "nothing")
        raise CheckpointError(
            f"{url} does not fit the model: {odd[0]} is {tuple(state[odd[0]].shape)} "
            f"here and {theirs} there ({len(odd)} differ). Use the same model sizes."
        )
    left = [name for name in shapes if name not in state]
    return Started(tuple(taken), tuple(fresh), tuple(left), tuple(widened))


def _entrances(task: Task) -> list[str]:
    """What sees the channels that a denoiser may have beside its latents."""
    if isinstance(task.spec, Denoiser) and task.spec.beside:
        return [f"model.{task.spec.entrance}"]
    return []


def _wider(ours: Tensor, theirs: Sequence[int]) -> bool:
    mine = tuple(ours.shape)
    alike = len(theirs) == len(mine) and (theirs[0], *theirs[2:]) == (mine[0], *mine[2:])
    return alike and theirs[1] < mine[1]


def fresh_task(run: Run, text: Text) -> Task:
    """The run's task as it is before its first step, weights of `start_from` included.

    Raises:
        CheckpointError: the run to start from has no checkpoint, other sizes or another tokenizer.
    """
    torch.manual_seed(run.seed)
    task = run.task(text)
    if not run.start_from:
        run.model.begin(task.model)
    if run.text_from:
        start_words(task.model, run.text_from)
    if run.start_from:
        begin(task, run.start_from, averaged=bool(run.adapters or run.control))
        _require_words(run.start_from, text, run.new_words)
    torch.manual_seed(run.seed)  # so that what adapters draw does not hang on the base
    adapt(task, run.adapters, text)
    if task.control:
        task.control.begin(task.model)
    return task


def begin(task: Task, source: str, *, averaged: bool) -> None:
    """Takes over the weights of a run, merged where it has adapters, of an exported folder, of
    open_clip's, transformers' or diffusers' folder or Stable Diffusion's file.

    With `averaged` it takes a run's moving average, where there is one.

    Raises:
        CheckpointError: there is no checkpoint, or the model differs.
    """
    if foreign := open_foreign(source):
        start_plain(task, foreign_weights(task, foreign), source)
        return
    if clip_folder.holds(source):
        _begin_clip(task, source)
        return
    if hub_folder.holds(source):
        start_plain(task, hub_folder.weights(task, source), source)
        return
    if storage.exists(storage.join(source, "model.safetensors")):
        start_plain(task, load(storage.read(storage.join(source, "model.safetensors"))), source)
        return
    place, checkpoint = RunDir(source), open_checkpoint(source)
    if checkpoint.base and storage.exists(place.at("recipe.yaml")):
        theirs = place.recipe(KINDS)
        text = tokens.load(place.at("tokenizer.json"), theirs.model.tokens)
        if theirs.adapters:
            made = trained_task(theirs, text, checkpoint)
            start_plain(task, plain_weights(made), source)
            return
    start(task, checkpoint, EMA if averaged and EMA in checkpoint.kinds else WEIGHT)


def _begin_clip(task: Task, folder: str) -> None:
    _, weights = clip_folder.read(folder)
    clip_folder.require_end(folder, task.words.empty[-1])
    found = start_plain(task, weights, folder)
    if left := [name for name in found.left if name.startswith("model.")]:
        raise CheckpointError(
            f"{folder} has {left[0].removeprefix('model.')!r}, which the recipe's model has not "
            f"({len(left)} such tensors). Leave `model` out of the recipe: it is read there."
        )


def foreign_weights(task: Task, foreign: Foreign) -> dict[str, Tensor]:
    """What a folder of diffusers or a single file holds of the task's model, by the task's names.

    Raises:
        CheckpointError: it is another model; the message names the tensor or the setting.
    """
    model = task.model
    if not isinstance(model, ConditionalUnet):
        raise CheckpointError(
            f"{foreign.url} holds a U-Net; the recipe's model is {task.spec.kind!r}. Set "
            "model.kind=unet."
        )
    unet: Any = model.unet
    require_like(foreign, unet.config)
    parts: list[tuple[Literal["unet", "text_encoder"], str]] = [("unet", "model.unet")]
    if isinstance(model.context, ClipContext):
        parts.append(("text_encoder", "model.context.clip"))
    elif any(name.startswith(("context.", "words.")) for name, _ in model.named_parameters()):
        raise CheckpointError(
            f"{foreign.url} has no weights of the recipe's text encoder. Set model.text=clip for "
            "that of the folder; or frozen encoders, model.texts, one as wide as model.width."
        )
    found: dict[str, Tensor] = {}
    for part, path in parts:
        values = foreign.fitted(part, task.get_submodule(path).state_dict())
        found |= {f"{path}.{name}": value for name, value in values.items()}
    return found


def require_start(source: str) -> None:
    """Says now what `begin` would say.

    Raises:
        CheckpointError: neither a run with a checkpoint nor an exported folder.
    """
    if foreign := open_foreign(source):
        foreign.require()
        return
    if clip_folder.holds(source):
        return
    if hub_folder.holds(source):
        hub_folder.require(source)
    elif not storage.exists(storage.join(source, "model.safetensors")):
        open_checkpoint(source)


def _require_words(source: str, text: Text, new: Sequence[str]) -> None:
    """Refuses word embeddings that belong to other words; their number may well be the same."""
    foreign = open_foreign(source)
    url = words_of(foreign) if foreign else storage.join(source, "tokenizer.json")
    if url and storage.exists(url):
        theirs = tokens.load(url, text.length)
        ours = {w: id for w, id in text.tokenizer.get_vocab().items() if w not in new}
        if theirs.tokenizer.get_vocab() != ours:
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
