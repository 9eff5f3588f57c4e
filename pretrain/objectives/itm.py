"""Image-text matching: does this text belong to this image? (ViLBERT, UNITER, ViLT.)

B rows, G rows of a group, L tokens, D width.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.draws import uniform
from ..objective import Objective, Score, Seen, Sizes, View, Words


class ImageTextMatching(Objective):
    """L = -log p(matched or not | image, text), with a share of the texts exchanged.

    A foreign text comes from the row's own group of `group` neighbours in the global batch. Groups
    lie whole on one rank, so every world size draws the same negatives. Put `itm` first: the other
    objectives then mask the text that the model really sees.
    """

    kind: ClassVar[str] = "itm"
    negatives: float = Field(default=0.5, gt=0, lt=1)
    """Share of the rows that get a foreign text."""
    group: int = Field(default=4, ge=2)
    """Rows that exchange texts; must divide the rows of a micro-batch."""

    @property
    def rows_multiple(self) -> int:
        return self.group

    def head(self, sizes: Sizes) -> nn.Module:
        return nn.Linear(sizes.width, 2)

    def hide(self, view: View, words: Words) -> View:
        rows = view.batch.rows
        draws_B2 = uniform(view.batch.draws_B, "itm", 2)
        swap_B = draws_B2[:, 0] < self.negatives
        step_B = 1 + (draws_B2[:, 1] * (self.group - 1)).long()
        row_B = torch.arange(rows, device=swap_B.device)
        start_B = row_B - row_B % self.group
        size_B = (rows - start_B).clamp(max=self.group)  # the last group of an evaluation is short
        other_B = start_B + (row_B - start_B + step_B) % size_B
        source_B = torch.where(swap_B, other_B, row_B)
        tokens_BL, real_BL = view.tokens_BL[source_B], view.real_BL[source_B]
        foreign_B = (tokens_BL != view.tokens_BL).any(1)  # the same words are no mismatch
        return replace(
            view,
            tokens_BL=tokens_BL,
            real_BL=real_BL,
            matched_B=view.matched_B & ~foreign_B,
            targets={**view.targets, self.kind: ~foreign_B},
        )

    def logits(self, head: Any, seen: Seen) -> Tensor:
        return head(seen.pooled_BD).float()

    def score(self, head: Any, seen: Seen) -> Score:
        targets_B = seen.view.targets[self.kind].long()
        logits_B2 = self.logits(head, seen)
        return Score(
            loss_B=F.cross_entropy(logits_B2, targets_B, reduction="none"),
            valid_B=torch.ones_like(targets_B, dtype=torch.bool),
            hits=(logits_B2.argmax(1) == targets_B).sum(),
            tries=torch.tensor(len(targets_B), device=targets_B.device),
        )
