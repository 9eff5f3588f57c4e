"""What an adapter is: what is trained of a model whose other weights, its base, stay as they are.

A run with adapters starts from a base. Its checkpoints hold what the adapters train, the heads and
the digest of the base, and never the base.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import Part
from ..data.tokens import Text
from ..errors import RecipeError
from .checkpoint import base_digest
from .task import Task


@dataclass(frozen=True)
class Site:
    """Where an adapter is put."""

    model: Any
    """The task's model; names are those of its own modules."""
    inside: Callable[[str], bool]
    """Whether a module of that name lies in the parts that the adapter is on."""
    name: str
    """What the adapter is called in the names of its parameters."""
    text: Text | None
    """The run's tokenizer, new words included."""


class Adapter(Part):
    """A record of what is trained of a model, and where."""

    on: tuple[str, ...] = ()
    """Parts of the model: `denoiser`, `text`, `transformer`; all that it has by default."""

    @property
    def new_words(self) -> tuple[str, ...]:
        """Words that the vocabulary grows by, in the order of their ids."""
        return ()

    def put(self, site: Site) -> Iterable[nn.Parameter]:
        """Changes the model so that it has the adapter; yields what is to be trained.

        Raises:
            RecipeError: nothing in the model is as the adapter asks.
        """
        raise NotImplementedError(f"adapter {self.kind!r} has no put")


def adapt(task: Task, adapters: Sequence[Adapter], text: Text | None = None) -> None:
    """Freezes the task's model, notes its digest and puts the adapters on; heads stay trained.

    `text` is the run's tokenizer, for adapters that add words.

    Raises:
        RecipeError: an adapter fits nowhere, or two take the same weights.
    """
    if not adapters:
        return
    task.model.requires_grad_(False)
    planned = any(param.is_meta for param in task.model.parameters())  # weights without data
    task.base = None if planned else base_digest(task)
    before = [name for name, _ in task.named_parameters()]
    trained: dict[int, nn.Parameter] = {}
    for number, adapter in enumerate(adapters):
        inside = _inside(adapter, task.spec.parts)
        site = Site(task.model, inside, f"{adapter.kind}{number}", text)
        for param in adapter.put(site):
            if id(param) in trained:
                raise RecipeError(
                    f"adapter {number} ({adapter.kind}) trains weights that another one before it "
                    "trains already. Give them other parts (`on`) or other targets."
                )
            trained[id(param)] = param
    for param in task.model.parameters():
        param.requires_grad = id(param) in trained
    whole = [name for name, param in task.named_parameters() if param.requires_grad]
    if whole == before:
        task.base = None  # nothing of it is left
    task.kept = _read_by_others(task.model)


def _inside(adapter: Adapter, parts: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether a name lies in an adapter's parts of the model.

    Raises:
        RecipeError: the model has no such part.
    """
    odd = [part for part in adapter.on if part not in parts]
    if odd:
        raise RecipeError(
            f"adapter {adapter.kind!r}: on names {odd[0]!r}. The model's parts are: "
            f"{', '.join(parts)}."
        )
    patterns = [re.compile(pattern) for name, pattern in parts.items() if name in adapter.on]

    def inside(name: str) -> bool:
        return not adapter.on or any(pattern.match(name) for pattern in patterns)

    return inside


def _read_by_others(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """Parameters of modules that hold an adapter: a module beside theirs computes with them."""
    holders = [module for module in model.modules() if hasattr(module, "adapter_layer_names")]
    return tuple({id(p): p for module in holders for p in module.parameters()}.values())
