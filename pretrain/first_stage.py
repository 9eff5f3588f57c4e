"""What a first stage is: frozen weights that turn pixels into latents and back (Rombach 2022).

A denoiser works on `(latent - shift) * scale`, about one in spread. B rows, C channels, H x W
pixels, h x w cells of a latent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ..config import kinds, pick
from ..data.draws import normal
from ..errors import RecipeError
from .encoder import Encoder
from .frozen import Frozen

MEASURED = "measured"
"""In place of a scale: whatever makes the training images' latents one in spread."""


class Moments(NamedTuple):
    """What an encoder says of an image, not scaled."""

    mean: Tensor
    logvar: Tensor | None = None
    """None where a latent is its mean alone."""


@dataclass(frozen=True)
class Stage:
    """A first stage with its weights in memory."""

    modules: tuple[nn.Module, ...]
    moments: Callable[[Tensor], Moments]
    """Images (B, 3, H, W) in [-1, 1] -> what the encoder says."""
    pixels: Callable[[Tensor], Tensor]
    """Latents as the encoder gives them -> images in about [-1, 1]."""
    scale: float = 1.0
    shift: float = 0.0

    def encode(self, image_BCHW: Tensor, draws_B: Tensor | None = None) -> Tensor:
        """Scaled latents of images in [-1, 1]; drawn by the row's key, or without one the mean."""
        return self.scaled(self.moments(image_BCHW.float()), draws_B)

    def scaled(self, found: Moments, draws_B: Tensor | None = None) -> Tensor:
        """Scaled latents of moments: mean + exp(logvar / 2) noise, the noise keyed by the row."""
        latent = found.mean.float()
        if found.logvar is not None and draws_B is not None:
            noise = normal(draws_B, "first_stage", latent[0].numel()).float().view_as(latent)
            latent = latent + (found.logvar.float().clamp(-30, 20) / 2).exp() * noise
        return (latent - self.shift) * self.scale

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images in [-1, 1], float32, of scaled latents."""
        return self.pixels(latent_BChw.float() / self.scale + self.shift).clamp(-1, 1)

    def to(self, device: torch.device) -> "Stage":
        """Itself, its weights on another device."""
        for module in self.modules:
            module.to(device)
        return self


class FirstStage(Frozen):
    """A record of a first stage: the shape of its latents, and where its weights lie."""

    scale: Annotated[float, Field(gt=0)] | Literal["measured"] | None = None
    """Latents are multiplied by it; by default with what stands in the weights' own settings.
    `measured`: 1 / standard deviation over the first training images, found before the first step
    and kept in the run's recipe (`scale_by_std` of latent diffusion)."""

    def factor_or(self, own: float | None) -> float:
        """The scale: the recipe's, else that of the weights' settings, else 1.

        Raises:
            RecipeError: it is still to be measured.
        """
        if self.scale == MEASURED:
            raise RecipeError(
                f"first stage {self.kind!r}: its scale is to be measured, which `diptych train` "
                "does. Write the number here: first_stage.scale."
            )
        return self.scale or own or 1.0

    @property
    def channels(self) -> int:
        """Of a latent."""
        raise NotImplementedError(f"first stage {self.kind!r} has no channels")

    @property
    def factor(self) -> int:
        """Pixels a side of a latent's cell."""
        raise NotImplementedError(f"first stage {self.kind!r} has no factor")

    @property
    def encoder(self) -> Encoder | None:
        """What `data precompute` fills a cache of its latents with; None where pixels stay."""
        return None

    def build(self, folders: Mapping[str, Path]) -> Stage:
        """The frozen model, in 32 bits; `folders` are local copies of `places`.

        Raises:
            RecipeError: the weights are not of such a model, or their shape is another.
        """
        raise NotImplementedError(f"first stage {self.kind!r} has no build")

    def open(self) -> Stage:
        """The first stage with its weights in memory, never to be trained.

        Raises:
            RecipeError: the weights are not of such a model, or not safetensors.
            StorageError: they cannot be read.
        """
        with self.folders() as folders, self.explained(), torch.device("cpu"):
            found = self.build(folders)
        for module in found.modules:
            module.eval().requires_grad_(False)
        return found


class Held:
    """A first stage that is opened when it is first needed, on the device that needs it."""

    def __init__(self, record: FirstStage) -> None:
        self.record = record
        self._stage: Stage | None = None

    def here(self) -> Stage:
        """The first stage, its weights wherever they are: for its scale."""
        if self._stage is None:
            self._stage = self.record.open()
        return self._stage

    def like(self, image_BCHW: Tensor) -> Tensor:
        """A tensor of the shape of the images' latents, without asking for the weights."""
        rows, _, height, width = image_BCHW.shape
        factor = self.record.factor
        shape = (rows, self.record.channels, height // factor, width // factor)
        return image_BCHW.new_empty(shape, dtype=torch.float32)

    def on(self, device: torch.device) -> Stage:
        """The first stage, with its weights on `device`."""
        return self.here().to(device)


def _pick(value: Any) -> Any:
    from . import first_stages  # which import this file

    return pick(value, kinds(first_stages), "first stage")


AnyFirstStage = Annotated[FirstStage, BeforeValidator(_pick)]
"""A field of a record that takes any of the first stages."""
