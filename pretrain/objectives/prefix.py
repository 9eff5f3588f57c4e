"""Prefix language modelling: the caption word by word, with the image as the prefix.

As in Unified VLP (Zhou et al. 2020), with the next word as the target (Vinyals et al. 2015).
B rows, L tokens, S sequences, T tokens of them, V words.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...data.batch import Batch
from ...data.draws import uniform
from ...errors import RecipeError
from ..objective import Score, Seen, Sizes, View, Words
from ..task import Task
from ..wordhead import WordHead, score_words
from ..writer import Following, Writer, weighed


class PrefixLanguage(Writer):
    """L = -log p(next word | words before it, image), the mean over a row's words and its end.

    A row is either read from left to right, and then this objective's alone, or left to the
    others; put it before `mlm`.
    """

    kind: ClassVar[str] = "prefix"
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows that are read from left to right."""

    @property
    def one_way(self) -> bool:
        return self.share == 1

    def head(self, sizes: Sizes) -> nn.Module:
        if sizes.shared and not sizes.regions:
            raise RecipeError(
                "objective 'prefix' writes of an image, which the words of this model never see; "
                "use model 'vlp', 'single_stream' or 'two_stream'."
            )
        return WordHead(sizes.width, sizes.vocabulary, sizes.epsilon)

    def hide(self, view: View, words: Words) -> View:
        causal_B = uniform(view.batch.draws_B, "prefix.row", 1)[:, 0] < self.share
        blank = view.tokens_BL.masked_fill(~(view.real_BL & causal_B[:, None]), -100)
        next_BL = torch.cat([blank[:, 1:], torch.full_like(blank[:, :1], -100)], dim=1)
        if view.causal_B is not None:
            causal_B = causal_B | view.causal_B
        return replace(view, causal_B=causal_B, targets={**view.targets, self.kind: next_BL})

    def score(self, head: Any, seen: Seen) -> Score:
        score = score_words(head, seen, seen.view.targets[self.kind])
        return replace(score, loss_B=weighed(seen.view, score.loss_B))

    def follow(self, task: Task, batch: Batch) -> Following:
        """The image is encoded anew for each token: right for every model, dear for a large one."""
        head: Any = task.heads[self.kind]

        @torch.no_grad()
        def following(row_S: Tensor, known_ST: Tensor) -> Tensor:
            real_ST = torch.ones_like(known_ST, dtype=torch.bool)
            view = task.look(replace(batch.pick(row_S), tokens_BL=known_ST, real_BL=real_ST))
            seen = task.model(replace(view, causal_B=torch.ones_like(view.matched_B)))
            logits_SV: Tensor = head(seen.tokens_BLD[:, -1], seen.word_weights_VD)
            return logits_SV.float().cpu()

        return following
