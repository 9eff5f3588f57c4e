"""Adapters put into the weights, taken out again to the bit, and several of them composed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.tokens import Text
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
