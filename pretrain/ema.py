"""An exponential moving average of the weights, over whatever part of them a rank holds.

After Polyak and Juditsky (1992), with the ramp of the decay that TensorFlow has.
It is elementwise, so that each rank keeps it of its own fp32 elements: nothing is gathered,
and any cut of the weights gives the same bits.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..config import Record


class Ema(Record):
    """average = decay * average + (1 - decay) * weights, after every optimiser step."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    warmup: bool = True
    """Raise the decay as (1 + step) / (10 + step) at first, lest the start weigh for long."""

    def decay_at(self, step: int) -> float:
        """The decay after optimiser step `step`, from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


@torch.no_grad()
def average(ema: Ema, averages: Sequence[Tensor], weights: Sequence[Tensor], step: int) -> None:
    """Moves each average towards its weights, in place; both fp32 and of one device."""
    if averages:
        share = 1 - ema.decay_at(step)
        torch._foreach_lerp_(list(averages), list(weights), share)  # pyright: ignore[reportPrivateImportUsage]
