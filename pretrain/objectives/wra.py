"""Word-region alignment by optimal transport (UNITER, Chen et al. 2020, section 3.2).

B rows, L words, N regions, D width.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..objective import Objective, Score, Seen, Sizes, View, Words, real_regions, require_regions


class WordRegionAlignment(Objective):
    """L = cost of moving a row's words onto its regions, negative for a foreign text.

    The cost of a word and a region is 1 - cosine of their states; every word and every region
    weighs the same. The plan is found by IPOT and held fixed while gradients flow through the
    costs. Special tokens are no words. It learns from foreign texts too, so put `itm` first.
    """

    kind: ClassVar[str] = "wra"
    weight: float = 0.1
    beta: float = Field(default=0.5, gt=0)
    """Step of the proximal point method: smaller is faster and less stable."""
    iterations: int = Field(default=50, ge=1)

    def head(self, sizes: Sizes) -> nn.Module:
        require_regions(self.kind, sizes)
        return super().head(sizes)

    def hide(self, view: View, words: Words) -> View:
        special = torch.tensor(words.special, device=view.tokens_BL.device)
        words_BL = view.real_BL & ~torch.isin(view.tokens_BL, special)
        return replace(view, targets={**view.targets, self.kind: words_BL})

    def score(self, head: Any, seen: Seen) -> Score:
        words_BL, view = seen.view.targets[self.kind], seen.view
        words_BLD = F.normalize(seen.tokens_BLD.float(), dim=2)
        regions_BND = F.normalize(seen.regions_BND.float(), dim=2)
        cost_BLN = 1 - words_BLD @ regions_BND.transpose(1, 2)
        regions_BN = real_regions(view)
        if regions_BN is None:
            regions_BN = torch.ones_like(regions_BND[:, :, 0], dtype=torch.bool)
        some_B = words_BL.any(1) & regions_BN.any(1) & view.batch.present_B
        with torch.no_grad():
            plan_BLN = ipot(
                cost_BLN, words_BL, regions_BN, beta=self.beta, iterations=self.iterations
            )
        distance_B = (plan_BLN * cost_BLN).sum((1, 2))
        sign_B = torch.where(view.matched_B, 1.0, -1.0)
        # A hit: a matched pair that is nearer than 1, the cost of unrelated states; a foreign one
        # that is not.
        hits_B = ((distance_B < 1) == view.matched_B) & some_B
        return Score(
            loss_B=sign_B * distance_B, valid_B=some_B, hits=hits_B.sum(), tries=some_B.sum()
        )


def ipot(
    cost_BLN: Tensor, rows_BL: Tensor, columns_BN: Tensor, *, beta: float, iterations: int
) -> Tensor:
    """The cheapest plan (B, L, N) from rows to columns, each of the real ones weighing alike.

    Inexact proximal point method (Xie et al. 2019) with one Sinkhorn step an iteration; exact as
    the iterations grow. Rows and columns that are not real get nothing.
    """
    real_BLN = rows_BL[:, :, None] & columns_BN[:, None, :]
    from_BL1 = _share(rows_BL)[:, :, None]
    to_BN1 = _share(columns_BN)[:, :, None]
    kernel_BLN = torch.exp(-cost_BLN / beta) * real_BLN
    plan_BLN, scale_BN1 = real_BLN.to(cost_BLN.dtype), to_BN1
    tiny = torch.finfo(cost_BLN.dtype).tiny
    for _ in range(iterations):
        kept_BLN = kernel_BLN * plan_BLN
        scale_BL1 = from_BL1 / (kept_BLN @ scale_BN1).clamp(min=tiny)
        scale_BN1 = to_BN1 / (kept_BLN.transpose(1, 2) @ scale_BL1).clamp(min=tiny)
        plan_BLN = scale_BL1 * kept_BLN * scale_BN1.transpose(1, 2)
    return plan_BLN


def _share(real_BK: Tensor) -> Tensor:
    return real_BK.float() / real_BK.sum(1, keepdim=True).clamp(min=1)
