"""Masked language modelling with the image in view (Devlin et al. 2019; UNITER, Chen et al. 2020).

B rows, L tokens, M masked tokens, D width, V words.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...data.draws import uniform
from ...errors import RecipeError
from ..objective import Objective, Score, Seen, Sizes, View, Words
from ..wordhead import WordHead, score_words


class MaskedLanguage(Objective):
    """L = -log p(hidden words | other words, image), the mean over a row's hidden words.

    Of the hidden words 80 % become the mask, 10 % a random word, 10 % stay. At least one word of a
    row is hidden. Rows whose regions are hidden keep their words (UNITER's conditional masking),
    so put `mrm` before `mlm`; rows with a foreign text are masked alike but not scored.
    """

    kind: ClassVar[str] = "mlm"
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the words of a row that are hidden."""
    whole: bool = False
    """Whether the pieces of a word are hidden together (BERT's whole-word masking)."""
    seq2seq: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows read from left to right (0.75 in VLP), the others both ways."""

    @property
    def one_way(self) -> bool:
        return self.seq2seq == 1

    def head(self, sizes: Sizes) -> nn.Module:
        if sizes.shared and not sizes.regions:
            raise RecipeError(
                "objective 'mlm' asks for words with the image in view, which the words of this "
                "model never see; use model 'vlp', 'single_stream' or 'two_stream'."
            )
        return WordHead(sizes.width, sizes.vocabulary, sizes.epsilon)

    def hide(self, view: View, words: Words) -> View:
        draws_B, length = view.batch.draws_B, view.tokens_BL.shape[1]
        special = torch.tensor(words.special, device=draws_B.device)
        free_BL = view.real_BL & ~torch.isin(view.tokens_BL, special)
        free_BL &= ~view.hidden_BN.any(1, keepdim=True)
        if view.causal_B is not None:  # another objective's rows
            free_BL &= ~view.causal_B[:, None]
        chance_BL = uniform(draws_B, "mlm.pick", length)
        if self.whole:
            chance_BL = chance_BL.gather(1, _starts(view.tokens_BL, words))
        chance_BL = chance_BL.masked_fill(~free_BL, 2.0)
        first_BL = chance_BL == chance_BL.amin(1, keepdim=True)
        hide_BL = free_BL & ((chance_BL < self.rate) | first_BL)
        how_BL = uniform(draws_B, "mlm.how", length)
        other_BL = (uniform(draws_B, "mlm.word", length) * words.size).long()
        shown_BL = torch.where(hide_BL & (how_BL < 0.8), words.mask, view.tokens_BL)
        shown_BL = torch.where(hide_BL & (how_BL >= 0.9), other_BL, shown_BL)
        targets_BL = view.tokens_BL.masked_fill(~hide_BL, -100)
        view = replace(view, tokens_BL=shown_BL, targets={**view.targets, self.kind: targets_BL})
        if not self.seq2seq:
            return view
        causal_B = uniform(draws_B, "mlm.seq2seq", 1)[:, 0] < self.seq2seq
        if view.causal_B is not None:
            causal_B = causal_B | view.causal_B
        return replace(view, causal_B=causal_B)

    def score(self, head: Any, seen: Seen) -> Score:
        return score_words(head, seen, seen.view.targets[self.kind])


def _starts(tokens_BL: Tensor, words: Words) -> Tensor:
    """(B, L): the place of the first piece of the word that each piece belongs to."""
    if words.joined is None:
        raise RecipeError(
            "mlm: whole=true hides the pieces of a word together, and the run's tokenizer does not "
            "mark them; use one of WordPiece, as BERT's, or leave `whole` out."
        )
    joined = torch.tensor(words.joined, dtype=torch.long, device=tokens_BL.device)
    place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
    return torch.where(torch.isin(tokens_BL, joined), 0, place_L).cummax(1).values
