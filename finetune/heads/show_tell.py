"""Show and Tell: an LSTM that is shown the image once, before the first word.

Vinyals et al., CVPR 2015. B rows, L tokens, N regions, D width of regions, H width of the LSTM.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...pretrain.objective import Sizes, require_regions
from ..recurrent import Read, Recurrent, mean_region, memory, word_table


class ShowTell(Recurrent):
    """x_-1 = norm(W mean(regions)); x_t = E word_t; p(word_t+1) = softmax(W_o LSTM(x_t)).

    The norm is not the paper's, which begins with a CNN that tells images apart: without it what
    all images of a fresh model share fills the memory, and the words never learn of the rest.
    """

    kind: ClassVar[str] = "show_tell"

    def head(self, sizes: Sizes) -> nn.Module:
        require_regions(self.kind, sizes)
        return Teller(sizes, self.width, self.dropout)


class Teller(nn.Module):
    """(regions, real, tokens) -> `Read`."""

    def __init__(self, sizes: Sizes, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.image = nn.Sequential(nn.Linear(sizes.width, width), nn.LayerNorm(width))
        self.table = word_table(sizes.vocabulary, width)
        self.cell = memory(width, width)
        self.words = nn.Linear(width, sizes.vocabulary)

    def forward(self, regions_BND: Tensor, real_BN: Tensor, tokens_BL: Tensor) -> Read:
        state = self.cell(self.image(mean_region(regions_BND, real_BN)))
        states = list[Tensor]()
        for x_BH in self.table(tokens_BL).unbind(1):
            state = self.cell(x_BH, state)
            states.append(state[0])
        states_BLH = F.dropout(torch.stack(states, dim=1), self.dropout, self.training)
        return Read(states_BLH, None)
