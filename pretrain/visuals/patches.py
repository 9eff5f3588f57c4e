"""Patches of the image, linearly projected (ViT, Dosovitskiy et al. 2021; ViLT, Kim et al. 2021).

B rows, N patches, D width.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..objective import View
from ..visual import Visual


class Patches(Visual):
    """A square grid of patches, row by row, each with its learned place."""

    kind: ClassVar[str] = "patches"
    patch: int = Field(default=16, ge=1)
    """Side of a patch, in pixels."""
    whole: bool = True
    """Whether one more token before the patches stands for the whole image."""

    def check(self, image_size: int) -> None:
        if image_size % self.patch:
            raise ValueError(f"image_size {image_size} is not a multiple of patch {self.patch}")

    def regions(self, image_size: int) -> int:
        return (image_size // self.patch) ** 2

    def region_values(self, image_size: int) -> int:
        return 3 * self.patch**2

    def build(self, width: int, image_size: int, epsilon: float) -> "PatchTokens":
        return PatchTokens(width, self.patch, self.regions(image_size), self.whole)


class PatchTokens(nn.Module):
    """view -> (B, N, D), or (B, 1 + N, D) with the token of the whole image."""

    def __init__(self, width: int, patch: int, regions: int, whole: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, stride=patch)
        self.places = nn.Parameter(torch.zeros(regions, width))
        self.hole = nn.Parameter(torch.zeros(width))
        self.whole = nn.Parameter(torch.zeros(width)) if whole else None
        for parameter in self.parameters():
            if parameter.ndim == 2 or parameter is self.hole:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, view: View) -> Tensor:
        patches_BND = self.project(view.image_BCHW).flatten(2).transpose(1, 2)
        patches_BND = patches_BND + self.places + view.hidden_BN[..., None] * self.hole
        if self.whole is None:
            return patches_BND
        return torch.cat([self.whole.expand(patches_BND.shape[0], 1, -1), patches_BND], dim=1)
