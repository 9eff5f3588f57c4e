"""Memory that a forward and backward pass takes, counted on tensors that have no data.

The task is made on torch's `meta` device and runs as it would anywhere: every tensor is counted
from the operation that makes it to the moment that nothing holds it any more.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..data.batch import Batch
from ..pretrain.task import Task


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that come to be while it is on, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {id(s) for s in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            if id(storage) not in before:  # else a view, or written in place
                self._count(storage)
        return found

    def _count(self, storage: Any) -> None:
        name, size = id(storage), storage.nbytes()
        if name in self._seen:
            return
        self._seen.add(name)
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._gone, name, size)

    def _gone(self, name: int, size: int) -> None:
        self._seen.discard(name)
        self.bytes -= size


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def pass_bytes(task: Task, batch: Batch) -> int:
    """Peak bytes of one forward and backward pass beside weights and their gradients.

    Args:
        task: on any device, in the precision that it would run in.
        batch: on the same device.
    """
    hooks = [
        param.register_post_accumulate_grad_hook(_forget)
        for param in task.parameters()
        if param.requires_grad
    ]
    try:
        with Live() as live:
            task(batch).total.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return live.peak_bytes


def _forget(param: Tensor) -> None:
    """Gradients are counted elsewhere."""
    param.grad = None
