"""Latents of TAEF2, madebyollin's tiny autoencoder with the latent space of FLUX.2 (MIT).

Three stages of stride two: a 64-pixel image becomes 32 channels of 8 x 8. B rows, C channels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator
from safetensors.torch import load_file
from torch import Tensor, nn

from ...data.cache import Side
from ..encoder import Apply, Encoder, Rows
from ..frozen import whole

WIDTH = 64
LATENT = 32


class Taef2(Encoder):
    """`latent` (32, size / 8, size / 8), about one in spread."""

    kind: ClassVar[str] = "taef2"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    weights: str
    """`taef2_encoder.safetensors`."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights}

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        (file,) = folders["weights"].glob("*.safetensors")
        model = layers()
        model.load_state_dict(load_file(file))
        model = model.float().to(device).eval()

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            return {"latent": model(images_BCHW.float() / 255)}

        return apply


def layers() -> nn.Sequential:
    """The encoder, on images in [0, 1]; the names of its parameters are those of the weights."""

    def stage(deep: bool) -> list[nn.Module]:
        down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)
        return [down, *(Block(deep) for _ in range(3))]

    first = [nn.Conv2d(3, WIDTH, 3, padding=1), Block(False)]
    last = nn.Conv2d(WIDTH, LATENT, 3, padding=1)
    return nn.Sequential(*first, *stage(False), *stage(False), *stage(True), last)


class Block(nn.Module):
    """Three convolutions around a shortcut; deep ones first mix what all cells have in common."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        convs = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        inner = 4 * WIDTH
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, inner, 1, bias=False),
                nn.GroupNorm(4, inner),
                nn.ReLU(),
                nn.Conv2d(inner, WIDTH, 1, bias=False),
            )
            if deep
            else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.pool is not None:
            x_BCHW = x_BCHW + self.pool(x_BCHW)
        return nn.functional.relu(self.conv(x_BCHW) + x_BCHW)
