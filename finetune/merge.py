"""Adapters put into the weights, taken out again to the bit, and several of them composed."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..data.tokens import Text
from ..errors import CheckpointError
from ..pretrain.run import Run
from ..pretrain.task import Task
from .grown import GrownWords
from .tuner import layers


def merge(model: nn.Module) -> Callable[[], None]:
    """Adds what peft's adapters say to the weights that they stand beside.

    Returns what undoes it: afterwards every weight has the bits that it had before.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    found = layers(model)
    for layer in found.values():
        weight: Tensor = layer.get_base_layer().weight
        kept.append((weight, weight.detach().clone()))
        layer.merge()

    def undo() -> None:
        with torch.no_grad():
            for weight, bits in kept:
                weight.copy_(bits)
        for layer in found.values():
            layer.merged_adapters.clear()

    return undo


def plain_weights(task: Task) -> dict[str, Tensor]:
    """A task's weights as one without adapters has them, by its names."""
    undo = merge(task.model)
    found: dict[str, Tensor] = {}
    beside = [f"model.{name}." for name in layers(task.model)]
    grown = {f"model.{n}": m for n, m in task.model.named_modules() if isinstance(m, GrownWords)}
    for name, value in task.state_dict().items():
        owner = next((prefix for prefix in beside if name.startswith(prefix)), None)
        if owner is None:
            found[name] = value.clone()
        elif name.startswith(f"{owner}base_layer."):
            found[owner + name.removeprefix(f"{owner}base_layer.")] = value.clone()
    undo()
    for name, words in grown.items():
        del found[f"{name}.rows"]
        found[f"{name}.weight"] = words.plain().weight.detach()
    return found


def merged(run: Run, task: Task, text: Text) -> tuple[Run, Task]:
    """The run and the task as if there had never been adapters; both given ones stay as they are.

    `text` is the run's tokenizer, the adapters' words included.
    """
    if not run.adapters:
        return run, task
    alone = run.model_copy(update={"adapters": (), "start_from": None})
    made = alone.task(text)
    made.load_state_dict(plain_weights(task))
    return alone, made.train(task.training)


def compose(
    base: Mapping[str, Tensor], changed: Sequence[tuple[Mapping[str, Tensor], float]]
) -> dict[str, Tensor]:
    """Weights of a base with what several runs on it changed, each times its weight.

    All are plain weights, as `plain_weights` gives them. New words of several runs stand one behind
    the other, in their order, and are not weighted.

    Raises:
        CheckpointError: a run is on a model of other sizes.
    """
    found = {name: value.clone() for name, value in base.items()}
    for weights, times in changed:
        for name, value in weights.items():
            before = base.get(name)
            rows = 0 if before is None else len(before)
            if before is None or before.shape[1:] != value.shape[1:] or len(value) < rows:
                shape = None if before is None else tuple(before.shape)
                raise CheckpointError(
                    f"{name} is {tuple(value.shape)} in a run and {shape} in the base. "
                    "Compose runs that start from the same base."
                )
            found[name][:rows] += times * (value[:rows] - before)
            if len(value) > rows:
                found[name] = torch.cat([found[name], value[rows:]])
    return found
