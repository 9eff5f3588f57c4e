"""Masked region modelling by feature regression (UNITER's MRFR, Chen et al. 2020, eq. 3).

B rows, N regions, P pixel values of a region, D width, C channels, H x W pixels.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.draws import uniform
from ..objective import Objective, Score, Seen, Sizes, View, Words


class MaskedRegion(Objective):
    """L = ||f(hidden region) - its own pixels||^2, the mean over a row's hidden regions.

    A region is a cell of the image grid and its feature is its pixels: a teacher that needs no
    weights and never moves. The pixels are taken away before the encoder, so nothing leaks through
    a convolution's neighbourhood. Only `share` of the rows lose regions; the others are left to
    `mlm`, so that a word and the region it names are never hidden together. A hit is a region
    predicted better than by the image's own mean colour.
    """

    kind: ClassVar[str] = "mrm"
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of the rows that lose regions."""
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of such a row's regions that are hidden, at least one."""

    def head(self, sizes: Sizes) -> nn.Module:
        return nn.Sequential(
            nn.Linear(sizes.width, sizes.width),
            nn.GELU(),
            nn.LayerNorm(sizes.width),
            nn.Linear(sizes.width, sizes.region_values),
        )

    def hide(self, view: View, words: Words) -> View:
        draws_B, regions = view.batch.draws_B, view.hidden_BN.shape[1]
        chance_BN = uniform(draws_B, "mrm.pick", regions)
        hide_BN = (chance_BN < self.rate) | (chance_BN == chance_BN.amin(1, keepdim=True))
        hide_BN &= uniform(draws_B, "mrm.row", 1) < self.share
        targets_BNP = cells(view.image_BCHW, regions)
        return replace(
            view,
            image_BCHW=_blank(view.image_BCHW, hide_BN),
            hidden_BN=view.hidden_BN | hide_BN,
            targets={**view.targets, self.kind: targets_BNP, f"{self.kind}.hidden": hide_BN},
        )

    def score(self, head: Any, seen: Seen) -> Score:
        hide_BN = seen.view.targets[f"{self.kind}.hidden"] & seen.view.matched_B[:, None]
        targets_BNP = seen.view.targets[self.kind]
        row_M = hide_BN.nonzero()[:, 0]
        targets_MP = targets_BNP[hide_BN]
        loss_M = F.mse_loss(
            head(seen.regions_BND[hide_BN]).float(), targets_MP, reduction="none"
        ).mean(1)
        count_B = hide_BN.sum(1)
        sum_B = torch.zeros(len(count_B), dtype=loss_M.dtype, device=loss_M.device)
        channels = seen.view.image_BCHW.shape[1]
        flat_MP = (
            targets_BNP.unflatten(2, (channels, -1))
            .mean((1, 3))
            .repeat_interleave(targets_BNP.shape[2] // channels, 1)[row_M]
        )
        return Score(
            loss_B=sum_B.index_add(0, row_M, loss_M) / count_B.clamp(min=1),
            valid_B=count_B > 0,
            hits=(loss_M < (flat_MP - targets_MP).square().mean(1)).sum(),
            tries=count_B.sum(),
        )


def cells(image_BCHW: Tensor, regions: int) -> Tensor:
    """Returns (B, N, P): the pixels of each cell of a square grid, row by row."""
    side = int(regions**0.5)
    size = image_BCHW.shape[2] // side
    return F.unfold(image_BCHW, size, stride=size).transpose(1, 2)


def _blank(image_BCHW: Tensor, hide_BN: Tensor) -> Tensor:
    side = int(hide_BN.shape[1] ** 0.5)
    grid_B1SS = hide_BN.view(-1, 1, side, side).to(image_BCHW.dtype)
    mask_B1HW = F.interpolate(grid_B1SS, size=image_BCHW.shape[2:], mode="nearest")
    return image_BCHW * (1 - mask_B1HW)
