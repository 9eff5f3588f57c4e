"""Prefix language modelling: the caption word by word, with the image as the prefix.

As in Unified VLP (Zhou et al. 2020), with the next word as the target (Vinyals et al. 2015).
B rows, L tokens, M predicted tokens, V words.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.draws import uniform
from ..objective import Objective, Score, Seen, Sizes, View, Words
from ..wordhead import WordHead


class PrefixLanguage(Objective):
    """L = -log p(next word | words before it, image), the mean over a row's words and its end.

    A row is either read from left to right, and then this objective's alone, or left to the
    others; put it before `mlm`.
    """

    kind: ClassVar[str] = "prefix"
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows that are read from left to right."""

    def head(self, sizes: Sizes) -> nn.Module:
        return WordHead(sizes.width, sizes.vocabulary, sizes.epsilon)

    def hide(self, view: View, words: Words) -> View:
        causal_B = uniform(view.batch.draws_B, "prefix.row", 1)[:, 0] < self.share
        blank = view.tokens_BL.masked_fill(~(view.real_BL & causal_B[:, None]), -100)
        next_BL = torch.cat([blank[:, 1:], torch.full_like(blank[:, :1], -100)], dim=1)
        if view.causal_B is not None:
            causal_B = causal_B | view.causal_B
        return replace(view, causal_B=causal_B, targets={**view.targets, self.kind: next_BL})

    def score(self, head: Any, seen: Seen) -> Score:
        targets_BL = seen.view.targets[self.kind]
        targets_BL = targets_BL.masked_fill(~seen.view.matched_B[:, None], -100)
        picked_BL = targets_BL >= 0
        targets_M, row_M = targets_BL[picked_BL], picked_BL.nonzero()[:, 0]
        logits_MV: Tensor = head(seen.tokens_BLD[picked_BL], seen.word_weights_VD)
        loss_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
        count_B = picked_BL.sum(1)
        sum_B = torch.zeros(len(count_B), dtype=loss_M.dtype, device=loss_M.device)
        return Score(
            loss_B=sum_B.index_add(0, row_M, loss_M) / count_B.clamp(min=1),
            valid_B=count_B > 0,
            hits=(logits_MV.argmax(1) == targets_M).sum(),
            tries=count_B.sum(),
        )
