"""TAEF2, madebyollin's tiny autoencoder with the latent space of FLUX.2 (MIT).

A 64-pixel image becomes 32 channels of 8 x 8. B rows, C channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import encoders
from ..encoders.taef2 import LATENT, WIDTH, Block, layers
from ..first_stage import FirstStage, Moments, Stage
from ..frozen import whole


class Taef2(FirstStage):
    """Both halves in three stages of stride two; latents are their means."""

    kind: ClassVar[str] = "taef2"
    weights: str
    """`taef2_encoder.safetensors`."""
    decoder: str
    """`taef2_decoder.safetensors`."""

    _whole = field_validator("weights", "decoder")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights, "decoder": self.decoder}

    @property
    def channels(self) -> int:
        return LATENT

    @property
    def factor(self) -> int:
        return 8

    @property
    def encoder(self) -> encoders.Taef2:
        return encoders.Taef2(weights=self.weights)

    def build(self, folders: Mapping[str, Path]) -> Stage:
        halves = layers(), decoding()
        for name, half in zip(self.places, halves, strict=True):
            (file,) = folders[name].glob("*.safetensors")
            half.load_state_dict(load_file(file))
            half.float()
        encode, decode = halves
        return Stage(
            halves,
            lambda image: Moments(encode(image / 2 + 0.5)),
            lambda latent: decode(latent) * 2 - 1,
            self.factor_or(None),
        )


def decoding() -> nn.Sequential:
    """The decoder, to images in [0, 1]; the names of its parameters are those of the weights."""

    def stage(deep: bool) -> list[nn.Module]:
        up = nn.Upsample(scale_factor=2)
        conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        return [*(Block(deep) for _ in range(3)), up, conv]

    first = [Squash(), nn.Conv2d(LATENT, WIDTH, 3, padding=1), nn.ReLU()]
    last = [Block(False), nn.Conv2d(WIDTH, 3, 3, padding=1)]
    return nn.Sequential(*first, *stage(True), *stage(False), *stage(False), *last)


class Squash(nn.Module):
    """Latents far out are drawn in: 3 tanh(x / 3)."""

    def forward(self, latent_BChw: Tensor) -> Tensor:
        return 3 * (latent_BChw / 3).tanh()
