"""Show, Attend and Tell: an LSTM that looks at the regions anew for each word.

Xu et al., ICML 2015, soft attention. B rows, L tokens, N regions, D width of regions, H width of
the LSTM.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...pretrain.objective import Sizes, require_regions
from ..recurrent import Read, Recurrent, mean_region, memory, word_table


class AttendTell(Recurrent):
    """a_t = softmax_i f(region_i, h_t-1); z_t = b_t sum_i a_ti region_i with b_t = sigma(f_b(h_t-1)).

    The loss is the paper's over the number of words T:
    (-sum_t log p(word_t) + penalty * sum_i (1 - sum_t a_ti)^2) / T.
    """  # noqa: E501

    kind: ClassVar[str] = "attend_tell"
    penalty: float = Field(default=1.0, ge=0)
    """On regions that all words together look at much more or less than once; `attend_tell.words`
    is the loss without it."""

    def head(self, sizes: Sizes) -> nn.Module:
        require_regions(self.kind, sizes)
        return Looker(sizes, self.width, self.dropout)

    def extra(self, read: Read, real_BN: Tensor, picked_BL: Tensor) -> Tensor:
        assert read.looks_BLN is not None
        sum_BN = (read.looks_BLN * picked_BL[:, :, None]).sum(1)
        off_B = ((1 - sum_BN).square() * real_BN).sum(1)
        return self.penalty * off_B / picked_BL.sum(1).clamp(min=1)


class Looker(nn.Module):
    """(regions, real, tokens) -> `Read`."""

    def __init__(self, sizes: Sizes, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.table = word_table(sizes.vocabulary, width)
        self.begin = nn.Linear(sizes.width, 2 * width)
        self.key, self.query = nn.Linear(sizes.width, width), nn.Linear(width, width)
        self.energy = nn.Linear(width, 1, bias=False)  # a softmax would cancel it
        self.gate = nn.Linear(width, 1)
        self.cell = memory(width + sizes.width, width)
        self.of_state, self.of_look = nn.Linear(width, width), nn.Linear(sizes.width, width)
        self.words = nn.Linear(width, sizes.vocabulary)

    def forward(self, regions_BND: Tensor, real_BN: Tensor, tokens_BL: Tensor) -> Read:
        keys_BNH = self.key(regions_BND)
        h_BH, c_BH = self.begin(mean_region(regions_BND, real_BN)).tanh().chunk(2, dim=1)
        told, looks = list[Tensor](), list[Tensor]()
        for x_BH in self.table(tokens_BL).unbind(1):
            energy_BN = self.energy((keys_BNH + self.query(h_BH)[:, None]).relu())[:, :, 0]
            look_BN = energy_BN.float().masked_fill(~real_BN, -torch.inf).softmax(1)
            seen_BD = torch.einsum("bn,bnd->bd", look_BN.to(regions_BND), regions_BND)
            seen_BD = self.gate(h_BH).sigmoid() * seen_BD
            h_BH, c_BH = self.cell(torch.cat([x_BH, seen_BD], dim=1), (h_BH, c_BH))
            told.append(x_BH + self.of_state(h_BH) + self.of_look(seen_BD))
            looks.append(look_BN)
        states_BLH = F.dropout(torch.stack(told, dim=1), self.dropout, self.training)
        return Read(states_BLH, torch.stack(looks, dim=1))
