"""The rows of all ranks as one tensor, with gradients that find their way back.

B rows of this rank, G rows of all. On one process, and in evaluation, where ranks do not step
together, a rank's own rows are all there is.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def everyone(rows_BD: Tensor) -> tuple[Tensor, int]:
    """Returns (rows_GD of all ranks in their order, the place of this rank's first row).

    Every rank must call it with as many rows. Backward sums what all ranks want of a row, so that
    the mean of the ranks' gradients is the gradient of the mean of their losses.
    """
    together = dist.is_available() and dist.is_initialized() and torch.is_grad_enabled()
    if not together or dist.get_world_size() == 1:
        return rows_BD, 0
    rows_GD: Tensor = _Gather.apply(rows_BD)  # pyright: ignore[reportAssignmentType]
    return rows_GD, dist.get_rank() * len(rows_BD)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:  # pyright: ignore
        ctx.rows = len(rows_BD)
        parts = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> Tensor:  # pyright: ignore
        summed_GD = grad_GD.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_GD)
        first = dist.get_rank() * ctx.rows
        return summed_GD[first : first + ctx.rows]


def averaged(value: Tensor) -> Tensor:
    """The mean of what all ranks say, without a gradient; every rank must call it.

    On one process, and in evaluation, its own.
    """
    found = value.detach().clone(memory_format=torch.contiguous_format)
    if dist.is_available() and dist.is_initialized() and torch.is_grad_enabled():
        dist.all_reduce(found)
        found /= dist.get_world_size()
    return found
