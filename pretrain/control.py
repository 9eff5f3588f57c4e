"""What a control is: a network beside a frozen denoiser that tells it where things are.

It looks at a hint (edges, strokes, colours, boxes) and gives what is added inside the denoiser's
U-Net. B rows, C channels, H x W pixels, h x w cells of a latent, L tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Part
from ..errors import RecipeError
from .denoiser import Denoiser
from .hint import AnyHint
from .objective import Asked, View

Steer = Callable[[Asked], Mapping[str, Any]]


@dataclass
class Residuals:
    """What is added inside a U-Net; the sum of several controls is added all the same."""

    down: list[Tensor] = field(default_factory=list[Tensor])
    """Of each skip connection; ControlNet's."""
    middle: Tensor | None = None
    """Of the middle block; ControlNet's."""
    levels: list[Tensor] = field(default_factory=list[Tensor])
    """Of each level on the way down; T2I-Adapter's."""

    def __mul__(self, weight: float) -> "Residuals":
        """Each times a weight."""
        middle = None if self.middle is None else self.middle * weight
        return Residuals(
            [one * weight for one in self.down], middle, [one * weight for one in self.levels]
        )

    def __add__(self, other: "Residuals") -> "Residuals":
        """Each plus its like."""
        middle = [one for one in (self.middle, other.middle) if one is not None]
        return Residuals(
            _sums(self.down, other.down),
            torch.stack(middle).sum(0) if middle else None,
            _sums(self.levels, other.levels),
        )

    def words(self) -> dict[str, Any]:
        """Arguments of diffusers' `UNet2DConditionModel`."""
        words: dict[str, Any] = {}
        if self.middle is not None:
            words["down_block_additional_residuals"] = self.down
            words["mid_block_additional_residual"] = self.middle
        if self.levels:
            words["down_intrablock_additional_residuals"] = list(self.levels)  # it takes them out
        return words


def _sums(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    if not left or not right:
        return [*left, *right]
    return [one + other for one, other in zip(left, right, strict=True)]


class Control(Part):
    """A record of a control: what it looks at and how its network is made."""

    hint: AnyHint
    """What it looks at."""
    timeless: ClassVar[bool] = False
    """Whether it sees the hint alone, so that one look does for all steps of a sampler."""
    hint_channels: ClassVar[int | None] = None
    """Channels that its network sees, gray hints repeated; None for the hint's own."""

    @property
    def channels(self) -> int:
        """Of the hint as the network sees it."""
        return self.hint_channels or self.hint.channels

    def build(self, unet: Any, factor: int) -> nn.Module:
        """The network for a U-Net whose latents have `factor` pixels a side of a cell, fresh.

        Raises:
            RecipeError: it does not fit such a U-Net.
        """
        raise NotImplementedError(f"control {self.kind!r} has no build")

    def begin(self, module: Any, unet: Any) -> None:
        """Takes over from the base what it starts with; nothing by default."""

    def look(self, module: Any, hint_BCHW: Tensor, asked: Asked) -> Residuals:
        """What is added where the network sees this hint, in [0, 1]."""
        raise NotImplementedError(f"control {self.kind!r} has no look")


class Port(nn.Module):
    """A control in a task: its network, the only part of the task that is trained."""

    def __init__(self, record: Control, spec: Any, model: Any) -> None:
        super().__init__()
        if not isinstance(spec, Denoiser) or not hasattr(model, "unet"):
            raise RecipeError(
                f"control {record.kind!r} adds to a U-Net; model {spec.kind!r} is none. "
                "Start from a run of model kind unet."
            )
        self.record = record
        self.net = record.build(model.unet, spec.first_stage.factor)

    def begin(self, model: Any) -> None:
        """Takes over from the base, once its weights are there."""
        self.record.begin(self.net, model.unet)

    def hint(self, view: View) -> Tensor:
        """(B, C, H, W) uint8 of a batch: what the loader brought, or drawn of its pictures now."""
        hint = self.record.hint
        brought = view.batch.hints.get(hint.kind)
        return hint.live(view.batch.image_BCHW) if brought is None else brought

    def show(self, view: View) -> View:
        """The view with its hint beside it."""
        return steered(view, [Guide(self, self.hint(view))])


class Guide(NamedTuple):
    """A control with its hint and its weight: some of them together steer a sampler."""

    port: Port
    hint_BCHW: Tensor
    """uint8; of one row, it is every row's."""
    weight: float = 1.0


def steered(view: View, guides: Sequence[Guide]) -> View:
    """The view with what all guides together add, each times its weight.

    Raises:
        RecipeError: a hint is not as large as the image, or not of its control's channels.
    """
    shown = [(guide, _shown(guide)) for guide in guides]
    seen: dict[int, Residuals] = {}

    def look(number: int, port: Port, hint_BCHW: Tensor, asked: Asked) -> Residuals:
        x_BChw = asked.x_BChw
        if len(hint_BCHW) == 1:
            hint_BCHW = hint_BCHW.expand(len(x_BChw), -1, -1, -1)
        elif len(hint_BCHW) != len(x_BChw):  # both halves of classifier-free guidance
            hint_BCHW = hint_BCHW.repeat(len(x_BChw) // len(hint_BCHW), 1, 1, 1)
        if number in seen:
            return seen[number]
        hint_BCHW = hint_BCHW.to(x_BChw.device, x_BChw.dtype)
        found = port.record.look(port.net, hint_BCHW, asked)
        if port.record.timeless and not torch.is_grad_enabled():
            seen[number] = found
        return found

    def steer(asked: Asked) -> Mapping[str, Any]:
        total = Residuals()
        for number, (guide, hint_BCHW) in enumerate(shown):
            found = look(number, guide.port, hint_BCHW, asked)
            total = total + (found if guide.weight == 1 else found * guide.weight)
        return total.words()

    return replace(view, steer=steer)


def _shown(guide: Guide) -> Tensor:
    """A hint as its network sees it, in [0, 1]."""
    hint_BCHW, record = guide.hint_BCHW, guide.port.record
    if hint_BCHW.shape[1] == 1 and record.channels > 1:
        hint_BCHW = hint_BCHW.expand(-1, record.channels, -1, -1)
    if hint_BCHW.shape[1] != record.channels:
        raise RecipeError(
            f"the hint {record.hint.kind!r} has {hint_BCHW.shape[1]} channels; its control was "
            f"made for {record.channels}."
        )
    return hint_BCHW.float() / 255
