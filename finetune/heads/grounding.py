"""Referring expressions: where in the image is what the text names? (Yu et al. 2016, RefCOCO.)

B rows, N regions, D width. A box is (left, top, right, bottom) as shares of the image's sides.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DataError
from ...pretrain.objective import (
    Objective,
    Score,
    Seen,
    Sizes,
    answerable,
    real_regions,
    require_regions,
)
from ..metrics import boxes

_NEAR = 0.5
"""IoU from which on a box counts as right."""


class Grounding(Objective):
    """Choice of a region: L = -log p(region | image, text). A box: L = 5 L1 + 2 (1 - GIoU).

    The text is the expression, the truth is the `box` of the sample's JSON record, as shares of the
    sides of what the model is shown: of the whole image where regions were found beforehand or the
    image is square. `choose` wants the model's visual to be `regions`; the right one is that of the
    highest IoU with the truth, and a row whose regions all miss it (IoU below 0.5) is not trained
    on and counts as wrong. `regress` (Deng et al. 2021, TransVG; weights of Carion et al. 2020)
    reads the box from a mean of the regions, weighted by attention, and needs no regions found
    beforehand. The accuracy is the share of boxes whose IoU with the truth is 0.5 or more.
    """

    kind: ClassVar[str] = "grounding"
    places: ClassVar[bool] = True
    both_ways: ClassVar[bool] = True
    way: Literal["choose", "regress"] = "regress"

    def head(self, sizes: Sizes) -> nn.Module:
        require_regions(self.kind, sizes)
        return _Pointer(sizes.width, self.way == "regress")

    def boxes(self, head: Any, seen: Seen) -> Tensor:
        """The box of each row, (B, 4) float32.

        Raises:
            DataError: `choose`, and the model has no regions found beforehand.
        """
        points_BN = head.points(seen)
        if self.way == "regress":
            return head.box(seen, points_BN)
        row_B = torch.arange(len(points_BN), device=points_BN.device)
        return _given(seen)[row_B, points_BN.argmax(1)]

    def score(self, head: Any, seen: Seen) -> Score:
        truth_B4, named_B = self.truth(seen)
        named_B &= answerable(seen.view)
        found_B4 = self.boxes(head, seen)
        near_B = (boxes.iou(found_B4.detach(), truth_B4) >= _NEAR) & named_B
        if self.way == "regress":
            loss_B, valid_B = _distance(found_B4, truth_B4), named_B
        else:
            loss_B, valid_B = self._choice(head, seen, truth_B4, named_B)
        return Score(loss_B=loss_B, valid_B=valid_B, hits=near_B.sum(), tries=named_B.sum())

    def _choice(
        self, head: Any, seen: Seen, truth_B4: Tensor, named_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        given_BN4 = _given(seen)
        flat_B4 = truth_B4[:, None].expand_as(given_BN4).flatten(0, 1)
        iou_BN = boxes.iou(given_BN4.flatten(0, 1), flat_B4).view(given_BN4.shape[:2])
        best_B, right_B = iou_BN.max(1)
        loss_B = F.cross_entropy(head.points(seen), right_B, reduction="none")
        there_B = named_B & (best_B >= _NEAR)
        return loss_B.where(there_B, 0.0), there_B

    def truth(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """(the true box of each row (B, 4) float32, bool (B,), True where there is one).

        Raises:
            DataError: a box that is not four numbers with an area.
        """
        batch, device = seen.view.batch, seen.pooled_BD.device
        found = [_box(f, k) for f, k in zip(batch.fields, batch.keys, strict=True)]
        filled = [box or (0.0, 0.0, 1.0, 1.0) for box in found]
        named = [box is not None for box in found]
        return torch.tensor(filled, device=device), torch.tensor(named, device=device)


class _Pointer(nn.Module):
    """Where a text points: a score a region, and perhaps a box."""

    def __init__(self, width: int, boxed: bool) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.read = (
            nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 4))
            if boxed
            else None
        )

    def forward(self, seen: Seen) -> Tensor:
        return self.points(seen)

    def points(self, seen: Seen) -> Tensor:
        """(B, N) float32, -inf for rows that only fill up."""
        points_BN = self.score(seen.regions_BND)[..., 0].float()
        real_BN = real_regions(seen.view)
        if real_BN is None:
            return points_BN
        real_BN = real_BN | ~real_BN.any(1, keepdim=True)
        return points_BN.masked_fill(~real_BN, -torch.inf)

    def box(self, seen: Seen, points_BN: Tensor) -> Tensor:
        """(B, 4) float32, inside the image."""
        assert self.read is not None  # `head` made it
        share_BN1 = points_BN.softmax(1)[..., None].to(seen.regions_BND.dtype)
        there_BD = (share_BN1 * seen.regions_BND).sum(1)
        place_B4 = self.read(torch.cat([there_BD, seen.pooled_BD], 1)).float().sigmoid()
        middle_B2, half_B2 = place_B4[:, :2], place_B4[:, 2:] / 2
        return torch.cat([middle_B2 - half_B2, middle_B2 + half_B2], 1).clamp(0, 1)


def _given(seen: Seen) -> Tensor:
    if seen.view.boxes_BN4 is None:
        raise DataError(
            "grounding chooses among regions that were found beforehand, and this model looks at "
            "pixels. Use `visual: {kind: regions}`, or the objective's way: regress."
        )
    return seen.view.boxes_BN4.float()


def _distance(found_B4: Tensor, truth_B4: Tensor) -> Tensor:
    from torchvision.ops import generalized_box_iou_loss  # imports for longer than torch itself

    apart_B = (found_B4 - truth_B4).abs().sum(1)
    return 5 * apart_B + 2 * generalized_box_iou_loss(found_B4, truth_B4, reduction="none")


def _box(fields: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    given = fields.get("box")
    if given is None:
        return None
    numbers = isinstance(given, list) and all(isinstance(n, int | float) for n in given)
    if (
        numbers
        and len(given) == 4
        and 0 <= given[0] < given[2] <= 1
        and 0 <= given[1] < given[3] <= 1
    ):
        return tuple(map(float, given))
    raise DataError(
        f"{key}: box {given!r} is not [left, top, right, bottom] as shares of the sides, from 0 "
        "to 1. Divide pixels by the image's width and height."
    )
