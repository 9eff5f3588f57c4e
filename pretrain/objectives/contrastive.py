"""Image-text contrast: which of all texts belongs to this image? (CLIP, Radford et al. 2021.)

B rows of this rank, G rows of all ranks, L tokens, E width of the shared space.
"""

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import RecipeError
from ..gather import everyone
from ..objective import Objective, Score, Seen, Sizes, answerable

_MIX = 0x5851F42D4C957F2D  # Knuth's MMIX multiplier


class Contrastive(Objective):
    """L = (-log p(own text | image) - log p(own image | text)) / 2, over the rows of all ranks.

    InfoNCE with a learned temperature. A row with a foreign text is no candidate, nor is another
    row with the very same words: that would be no mistake. The candidates are the micro-batches
    that the ranks step on together: accumulation over smaller ones has fewer of them.
    """

    kind: ClassVar[str] = "contrastive"
    temperature: float = Field(default=0.07, gt=0)
    """At the start of the run."""
    least_temperature: float = Field(default=0.01, gt=0)
    """It is never learned to be lower."""

    def head(self, sizes: Sizes) -> nn.Module:
        if not sizes.shared:
            raise RecipeError(
                "objective 'contrastive' compares an image and a text that have not met; this "
                "model mixes them at once. Use model 'two_stream' with `shared` set."
            )
        return _Scale(self.temperature, self.least_temperature)

    def score(self, head: Any, seen: Seen) -> Score:
        assert seen.towers is not None  # `head` refused such a model
        text_BE, image_BE = seen.towers.text_BE.float(), seen.towers.image_BE.float()
        text_GE, first = everyone(text_BE)
        image_GE, _ = everyone(image_BE)
        fair_B, apart_BG = _candidates(seen)
        own_B = first + torch.arange(len(text_BE), device=text_BE.device)
        scale = head()
        texts_BG = (scale * image_BE @ text_GE.T).masked_fill(~apart_BG, -torch.inf)
        images_BG = (scale * text_BE @ image_GE.T).masked_fill(~apart_BG, -torch.inf)
        loss_2B = [F.cross_entropy(each, own_B, reduction="none") for each in (texts_BG, images_BG)]
        hits_B = sum((each.argmax(1) == own_B).long() for each in (texts_BG, images_BG))
        return Score(
            loss_B=torch.stack(loss_2B).mean(0),
            valid_B=fair_B,
            hits=(hits_B * fair_B).sum(),
            tries=2 * fair_B.sum(),
        )


def _candidates(seen: Seen) -> tuple[Tensor, Tensor]:
    """Rows that are compared (B,), and what each is compared with (B, G), itself always."""
    batch, view = seen.view.batch, seen.view
    fair_B = answerable(view)
    words_B = _hash(batch.tokens_BL * batch.real_BL)
    rows_G2, first = everyone(torch.stack([words_B, fair_B.long()], dim=1))
    apart_BG = (words_B[:, None] != rows_G2[:, 0]) & rows_G2[:, 1].bool()
    row_B = torch.arange(len(words_B), device=words_B.device)
    apart_BG[row_B, first + row_B] = True
    return fair_B, apart_BG


def _hash(ids_BL: Tensor) -> Tensor:
    """(B,) int64, the same for the same ids; zeros at the end change nothing."""
    powers_L = torch.full_like(ids_BL[0], _MIX).cumprod(0)
    return (ids_BL * powers_L).sum(1)


class _Scale(nn.Module):
    """exp of a learned number, held below 1 / least temperature."""

    def __init__(self, temperature: float, least: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(temperature)))
        self.most = -math.log(least)

    def forward(self) -> Tensor:
        over = (self.log_scale - self.most).clamp(min=0).detach()  # gradients still pull it back
        return (self.log_scale - over).exp()[0]
