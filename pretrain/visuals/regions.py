"""Regions found beforehand: features and boxes from members of the tar (bottom-up attention), or
the cells that a frozen encoder makes of the picture (grid features, Jiang et al. 2020).

B rows, N regions, F values of a feature, G of a box, D width.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DataError
from ..encoder import Encoder
from ..eye import BOXES, REGIONS, AnyEye, require_shape
from ..objective import View
from ..visual import Visual


class Regions(Visual):
    """A feature and a box of each region: the mean of the two projections, each normalised."""

    kind: ClassVar[str] = "regions"
    count: int = Field(default=36, ge=1)
    """Most regions of an image; further ones are left out."""
    values: int = Field(default=2048, ge=1)
    """Values of a feature."""
    geometry: Literal[0, 4, 7] = 7
    """What is seen of a box: nothing (VisualBERT), its corners (LXMERT), or corners, width, height
    and area (UNITER)."""
    features: str = "features"
    """The .npy member with a row of values for each region."""
    boxes: str = "boxes"
    """The .npy member with left, top, right and bottom of each region as shares of the sides."""

    encoder: AnyEye = None
    """What makes features of the picture itself, such as {kind: grid, backbone: resnet50, weights:
    ./resnet50}, in place of both members: live, or from a cache of `data precompute`. `count` is
    then a square number, of cells row by row; or the most that a detector finds."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"} if self.encoder else ())

    @property
    def eye(self) -> Encoder | None:
        return self.encoder

    def check(self, image_size: int) -> None:
        if self.encoder and not self.encoder.boxed and math.isqrt(self.count) ** 2 != self.count:
            raise ValueError(f"visual.count {self.count} is no square number of an encoder's cells")

    @property
    def arrays(self) -> Mapping[str, tuple[int, int]]:
        if self.encoder:
            return {}
        return {self.features: (self.count, self.values), self.boxes: (self.count, 4)}

    def look(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        if self.encoder:
            found_BNF = arrays.get(REGIONS)
            if found_BNF is None:
                return None
            require_shape(self.encoder, found_BNF, self.count, self.values)
            if not self.encoder.boxed:
                return found_BNF, cells(math.isqrt(self.count), found_BNF)
            less = (0, 0, 0, self.count - found_BNF.shape[1])
            return F.pad(found_BNF, less), F.pad(arrays[BOXES], less)
        for name in (self.features, self.boxes):
            if name not in arrays:
                raise DataError(f"The batch has no array {name!r}, which visual 'regions' reads.")
        return arrays[self.features], arrays[self.boxes]

    def regions(self, image_size: int) -> int:
        return self.count

    def region_values(self, image_size: int) -> int:
        return self.values

    def build(self, width: int, image_size: int, epsilon: float) -> "RegionTokens":
        return RegionTokens(width, self.values, self.geometry, epsilon)


class RegionTokens(nn.Module):
    """view -> (B, N, D)."""

    def __init__(self, width: int, values: int, geometry: int, epsilon: float) -> None:
        super().__init__()
        self.geometry = geometry
        self.project = nn.Linear(values, width)
        self.hole = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.hole, std=0.02)
        if geometry:
            self.place = nn.Linear(geometry, width)
            self.norm, self.norm_place = (nn.LayerNorm(width, eps=epsilon) for _ in range(2))

    def forward(self, view: View) -> Tensor:
        assert view.features_BNF is not None and view.boxes_BN4 is not None  # `Regions.look`
        dtype = self.project.weight.dtype
        regions_BND = self.project(view.features_BNF.to(dtype))
        regions_BND = regions_BND + view.hidden_BN[..., None] * self.hole
        if not self.geometry:
            return regions_BND
        boxes_BNG = seven(view.boxes_BN4)[..., : self.geometry].to(dtype)
        return (self.norm(regions_BND) + self.norm_place(self.place(boxes_BNG))) / 2


def seven(boxes_BN4: Tensor) -> Tensor:
    """(B, N, 7): left, top, right, bottom, width, height, area."""
    sides_BN2 = boxes_BN4[..., 2:] - boxes_BN4[..., :2]
    return torch.cat([boxes_BN4, sides_BN2, sides_BN2.prod(2, keepdim=True)], dim=2)


def cells(side: int, like_BNF: Tensor) -> Tensor:
    """(B, side * side, 4): left, top, right and bottom of a square's cells, row by row."""
    edges = torch.arange(side + 1, device=like_BNF.device, dtype=torch.float32) / side
    left, right = edges[:-1].repeat(side), edges[1:].repeat(side)
    top, bottom = edges[:-1].repeat_interleave(side), edges[1:].repeat_interleave(side)
    boxes_N4 = torch.stack([left, top, right, bottom], dim=1)
    return boxes_N4.expand(len(like_BNF), -1, -1)
