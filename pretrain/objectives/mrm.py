"""Masked region modelling in its three forms (UNITER, Chen et al. 2020, section 3.2).

B rows, N regions, M hidden ones, P values of a region or classes of a teacher, F values of a
feature, C channels, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.draws import uniform
from ...errors import RecipeError
from ..objective import Objective, Score, Seen, Sizes, View, Words, real_regions


class MaskedRegion(Objective):
    """L = ||f(hidden region) - its own values||^2 or a loss against a teacher's classes, the mean
    over a row's hidden regions.

    A region is a cell of the image grid and its values are its pixels, which need no weights and
    never move; or it was found beforehand and has features. They are taken away before the
    encoder, so nothing leaks through a convolution's neighbourhood. Only `share` of the rows lose
    regions; the others are left to `mlm`, so that a word and the region it names are never hidden
    together. A hit is a region predicted better than by the image's own mean, or the teacher's
    first choice.
    """

    kind: ClassVar[str] = "mrm"
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of the rows that lose regions."""
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of such a row's regions that are hidden, at least one."""

    form: Literal["features", "classes", "distribution"] = "features"
    """What is predicted of a hidden region: its own features or pixels (MRFR), the teacher's first
    choice (MRC), or all of the teacher's distribution (MRC-kl)."""
    teacher: str = "teacher"
    """The .npy member of a sample with a row of class probabilities for each region. Give a new
    teacher's a new name."""
    classes: int = Field(default=0, ge=0)
    """Classes that the teacher knows."""

    @model_validator(mode="after")
    def _sound(self) -> "MaskedRegion":
        if (self.form == "features") != (self.classes == 0):
            raise ValueError(
                f"mrm: form {self.form!r} with classes={self.classes}; set `classes` to the width "
                "of the teacher's rows for 'classes' and 'distribution', and only for them"
            )
        return self

    @property
    def arrays(self) -> Mapping[str, int]:
        return {self.teacher: self.classes} if self.classes else {}

    def head(self, sizes: Sizes) -> nn.Module:
        if not sizes.region_values:
            raise RecipeError(
                "objective 'mrm' hides regions that stand for a cell of the image or were found "
                "beforehand; this model's do not. Leave mrm out, or do not sample regions."
            )
        return nn.Sequential(
            nn.Linear(sizes.width, sizes.width),
            nn.GELU(),
            nn.LayerNorm(sizes.width, eps=sizes.epsilon),
            nn.Linear(sizes.width, self.classes or sizes.region_values),
        )

    def hide(self, view: View, words: Words) -> View:
        draws_B, regions = view.batch.draws_B, view.hidden_BN.shape[1]
        chance_BN = uniform(draws_B, "mrm.pick", regions)
        real_BN = real_regions(view)
        if real_BN is not None:
            chance_BN = chance_BN.masked_fill(~real_BN, 2.0)
        hide_BN = (chance_BN < self.rate) | (chance_BN == chance_BN.amin(1, keepdim=True))
        hide_BN &= uniform(draws_B, "mrm.row", 1) < self.share
        if real_BN is not None:
            hide_BN &= real_BN
        features_BNF = view.features_BNF
        if self.classes:
            targets_BNP = view.batch.arrays[self.teacher]
        else:
            targets_BNP = cells(view.image_BCHW, regions) if features_BNF is None else features_BNF
        if features_BNF is None:
            view = replace(view, image_BCHW=_blank(view.image_BCHW, hide_BN))
        else:
            view = replace(view, features_BNF=features_BNF.masked_fill(hide_BN[..., None], 0.0))
        return replace(
            view,
            hidden_BN=view.hidden_BN | hide_BN,
            targets={**view.targets, self.kind: targets_BNP, f"{self.kind}.hidden": hide_BN},
        )

    def score(self, head: Any, seen: Seen) -> Score:
        hide_BN = seen.view.targets[f"{self.kind}.hidden"] & seen.view.matched_B[:, None]
        targets_BNP = seen.view.targets[self.kind]
        if self.classes:  # a region that the teacher is silent on has no target
            hide_BN = hide_BN & (targets_BNP.sum(2) > 0)
        row_M = hide_BN.nonzero()[:, 0]
        found_MP, targets_MP = head(seen.regions_BND[hide_BN]).float(), targets_BNP[hide_BN]
        if self.classes:
            loss_M = self._divergence(found_MP, targets_MP)
            hits_M = found_MP.argmax(1) == targets_MP.argmax(1)
        else:
            loss_M = F.mse_loss(found_MP, targets_MP, reduction="none").mean(1)
            flat_MP = _flat(seen.view, targets_BNP)[row_M]
            hits_M = loss_M < (flat_MP - targets_MP).square().mean(1)
        count_B = hide_BN.sum(1)
        sum_B = torch.zeros(len(count_B), dtype=loss_M.dtype, device=loss_M.device)
        return Score(
            loss_B=sum_B.index_add(0, row_M, loss_M) / count_B.clamp(min=1),
            valid_B=count_B > 0,
            hits=hits_M.sum(),
            tries=count_B.sum(),
        )

    def _divergence(self, found_MP: Tensor, teacher_MP: Tensor) -> Tensor:
        """(M,): cross-entropy with the teacher's first choice, or KL(teacher || found)."""
        if self.form == "classes":
            return F.cross_entropy(found_MP, teacher_MP.argmax(1), reduction="none")
        share_MP = teacher_MP / teacher_MP.sum(1, keepdim=True)
        return F.kl_div(found_MP.log_softmax(1), share_MP, reduction="none").sum(1)


def _flat(view: View, targets_BNP: Tensor) -> Tensor:
    """(B, P): the row's mean, of features or of each colour of its pixels."""
    if view.features_BNF is not None:
        real_BN = real_regions(view)
        assert real_BN is not None  # features come with boxes
        return targets_BNP.sum(1) / real_BN.sum(1, keepdim=True).clamp(min=1)
    channels = view.image_BCHW.shape[1]
    mean_BC = targets_BNP.unflatten(2, (channels, -1)).mean((1, 3))
    return mean_BC.repeat_interleave(targets_BNP.shape[2] // channels, 1)


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
