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
from ...errors import RecipeError
from ..objective import Objective, Score, Seen, Sizes, View, Words, answerable, read_whole


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
    hard: bool = False
    """Instead of exchanging texts beforehand, score each image with its own text and with the
    group's most similar others, as `contrastive` sees it (ALBEF, Li et al. 2021)."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the softmax over similarities that a hard negative is drawn from."""

    @property
    def rows_multiple(self) -> int:
        return self.group

    def head(self, sizes: Sizes) -> nn.Module:
        if self.hard and not sizes.shared:
            raise RecipeError(
                "itm with hard=true needs similarities of images and texts that have not met; "
                "use model 'two_stream' with `shared` set, and the objective 'contrastive'."
            )
        return nn.Linear(sizes.width, 2)

    def hide(self, view: View, words: Words) -> View:
        if self.hard:
            return view
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
        if self.hard:
            return self._score_hard(head, seen)
        targets_B = seen.view.targets[self.kind].long()
        logits_B2 = self.logits(head, seen)
        valid_B = read_whole(seen.view) & seen.view.batch.present_B
        return Score(
            loss_B=F.cross_entropy(logits_B2, targets_B, reduction="none"),
            valid_B=valid_B,
            hits=((logits_B2.argmax(1) == targets_B) & valid_B).sum(),
            tries=valid_B.sum(),
        )

    def _score_hard(self, head: Any, seen: Seen) -> Score:
        """Each image with its own text, and with another that looks right, where there is one."""
        assert seen.towers is not None  # `head` refused such a model
        valid_B = answerable(seen.view)
        other_B, found_B = self._mine(seen, valid_B)
        own_B2, other_B2 = self.logits(head, seen), head(seen.towers.pair(other_B)).float()
        yes_B = torch.ones(len(own_B2), dtype=torch.long, device=own_B2.device)
        own_B = F.cross_entropy(own_B2, yes_B, reduction="none")
        wrong_B = F.cross_entropy(other_B2, 1 - yes_B, reduction="none") * found_B
        right_B = (own_B2.argmax(1) == 1).long() + (other_B2.argmax(1) == 0) * found_B
        return Score(
            loss_B=(own_B + wrong_B) / (1 + found_B.long()),
            valid_B=valid_B,
            hits=(right_B * valid_B).sum(),
            tries=(valid_B * (1 + found_B.long())).sum(),
        )

    @torch.no_grad()
    def _mine(self, seen: Seen, usable_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (row of a foreign text, likelier the more similar it is; whether there is one).

        B rows, G rows of a group, L tokens, E width of the shared space.
        """
        assert seen.towers is not None
        batch, rows = seen.view.batch, seen.view.batch.rows
        row_B1 = torch.arange(rows, device=usable_B.device)[:, None]
        others_BG = row_B1 - row_B1 % self.group + torch.arange(self.group, device=row_B1.device)
        there_BG = others_BG < rows  # the last group of an evaluation is short
        others_BG = others_BG.clamp(max=rows - 1)
        same_BG = (batch.tokens_BL[others_BG] == batch.tokens_BL[:, None]).all(2)
        there_BG &= ~same_BG & usable_B[others_BG]
        text_BGE = seen.towers.text_BE.float()[others_BG]
        likeness_BG = (text_BGE @ seen.towers.image_BE.float()[:, :, None])[:, :, 0]
        chance_BG = (likeness_BG / self.temperature).masked_fill(~there_BG, -1e9).softmax(1)
        draw_B1 = uniform(batch.draws_B, "itm.hard", 1)
        place_B1 = (chance_BG.double().cumsum(1) < draw_B1).sum(1, keepdim=True)
        place_B1 = place_B1.clamp(max=self.group - 1)
        best_B1 = chance_BG.argmax(1, keepdim=True)  # where rounding led to one with no chance
        place_B1 = torch.where(there_BG.gather(1, place_B1), place_B1, best_B1)
        return others_BG.gather(1, place_B1)[:, 0], there_BG.any(1)
