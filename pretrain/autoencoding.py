"""What first stages that are trained share: their sizes, and what they give of a view.

B rows, C channels, H x W pixels, h x w cells of a latent.
"""

from typing import Any, ClassVar, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor, nn

from .model import Model
from .objective import Sizes, View, Words


class Decoded(NamedTuple):
    """What a first stage makes of the images of a view."""

    view: View
    said_BCHW: Tensor
    """The images again, about in [-1, 1]."""
    last_BCHW: Tensor
    """What the decoder's last convolution read, detached: its gradient is made of it."""
    bound_B: Tensor
    """What keeps each row's latent in bounds: nats of KL, or the codebook's loss."""
    share: float
    """What the bound counts beside a mean error over pixels."""


class Autoencoding(Model):
    """A record of a first stage's sizes."""

    gives: ClassVar[type] = Decoded
    channels: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    """Of each level; each next level has half the height and width."""
    layers: int = Field(default=1, ge=1)
    """Residual blocks a level, one more on the way up."""
    groups: int = Field(default=32, ge=1)
    """Of group norm; must divide all channels."""
    latent_channels: int = Field(default=4, ge=1)
    attends: bool = True
    """Attention in the middle, over all cells."""

    @property
    def factor(self) -> int:
        """Pixels a side of a latent's cell."""
        return 2 ** (len(self.channels) - 1)

    @property
    def any_size(self) -> bool:
        return True

    @property
    def multiple(self) -> int:
        return self.factor

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"})

    @model_validator(mode="after")
    def _fits(self) -> "Autoencoding":
        if odd := [n for n in self.channels if n % self.groups]:
            raise ValueError(f"channels {odd[0]} is not a multiple of groups {self.groups}")
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.factor}")
        return self

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.channels[0], vocabulary=words.size)

    def settings(self) -> dict[str, Any]:
        """What both networks of diffusers call them."""
        count = len(self.channels)
        return {
            "down_block_types": ("DownEncoderBlock2D",) * count,
            "up_block_types": ("UpDecoderBlock2D",) * count,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.groups,
            "sample_size": self.image_size,
            "mid_block_add_attention": self.attends,
        }


class Seat:
    """Remembers what the decoder's last convolution read in the pass under way."""

    def __init__(self, net: Any) -> None:
        self._read: Tensor | None = None
        conv: nn.Conv2d = net.decoder.conv_out
        conv.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._read = inputs[0].detach()

    def take(self) -> Tensor:
        """What it read; forgotten then."""
        assert self._read is not None  # the decoder has just run
        read, self._read = self._read, None
        return read
