"""What a likeness is: a frozen network in whose features two images are compared (LPIPS' form).

Zhang et al., CVPR 2018, without their calibration of channels: features of several depths, each
place's vector made one long, squared differences summed over channels, averaged over places, summed
over depths. B rows, C channels, H x W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from ..config import kinds, pick
from .frozen import Frozen

_TINY = 1e-10


@dataclass(frozen=True)
class Eye:
    """A network with its weights in memory."""

    module: nn.Module
    features: Callable[[Tensor], Sequence[Tensor]]
    """Images in [-1, 1] -> maps (B, C, h, w) of several depths."""


class Likeness(Frozen):
    """A record of such a network, and of where its weights lie."""

    def build(self, folders: Mapping[str, Path]) -> Eye:
        """The frozen network, in 32 bits; `folders` are local copies of `places`.

        Raises:
            RecipeError: the weights are not of such a network.
        """
        raise NotImplementedError(f"likeness {self.kind!r} has no build")


class Looking:
    """A likeness that is opened when it is first needed, on the device that needs it.

    No module: what holds it neither trains it nor keeps it in a checkpoint.
    """

    def __init__(self, record: Likeness) -> None:
        self.record = record
        self._eye: Eye | None = None

    def apart(self, one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """How far images are apart, (B,) float32.

        Raises:
            RecipeError: the weights are not there, or of another network.
        """
        if self._eye is None:
            with self.record.folders() as folders, self.record.explained(), torch.device("cpu"):
                self._eye = self.record.build(folders)
            self._eye.module.eval().requires_grad_(False)
        self._eye.module.to(one_BCHW.device)
        pairs = zip(self._eye.features(one_BCHW), self._eye.features(other_BCHW), strict=True)
        far_B = one_BCHW.new_zeros(len(one_BCHW))
        for one, other in pairs:
            far_B = far_B + (_unit(one) - _unit(other)).pow(2).sum(1).flatten(1).mean(1)
        return far_B


def _unit(map_BChw: Tensor) -> Tensor:
    return map_BChw / (map_BChw.pow(2).sum(1, keepdim=True) + _TINY).sqrt()


def _pick(value: Any) -> Any:
    from . import likenesses  # which import this file

    return pick(value, kinds(likenesses), "likeness")


AnyLikeness = Annotated[Likeness, BeforeValidator(_pick)]
"""A field of a record that takes any of them."""
