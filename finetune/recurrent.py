"""What captioners with an LSTM share: they read a model's regions, and words from left to right.

B rows, L tokens, N regions, M scored tokens, D width of regions, H width of the LSTM, V words.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batch import Batch
from ..pretrain.attend import region_keys
from ..pretrain.objective import Score, Seen, View, Words, real_regions
from ..pretrain.task import Task
from ..pretrain.writer import Following, Writer, weighed


class Read(NamedTuple):
    """What an LSTM made of a text so far."""

    states_BLH: Tensor
    """What the output layer `words` makes the next word of."""
    looks_BLN: Tensor | None
    """Where it looked for each, sums of 1; None where it does not look again."""


class Recurrent(Writer):
    """L = -log p(next word | words before it, image), the mean over a row's words and its end.

    The head is a module (regions (B, N, D), which are real (B, N), tokens (B, L)) -> `Read` with an
    output layer `words`. Every row is read from left to right, so that no region ever sees a word;
    objectives that hide words find none to hide beside it.
    """

    width: int = Field(default=512, ge=1)
    """Of the LSTM and of its words."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the states that words are told from."""

    @property
    def one_way(self) -> bool:
        return True

    def hide(self, view: View, words: Words) -> View:
        blank = view.tokens_BL.masked_fill(~view.real_BL, -100)
        next_BL = torch.cat([blank[:, 1:], torch.full_like(blank[:, :1], -100)], dim=1)
        targets = {**view.targets, self.kind: next_BL, f"{self.kind}.read": view.tokens_BL}
        return replace(view, causal_B=torch.ones_like(view.matched_B), targets=targets)

    def score(self, head: Any, seen: Seen) -> Score:
        targets_BL = seen.view.targets[self.kind]
        targets_BL = targets_BL.masked_fill(~seen.view.matched_B[:, None], -100)
        real_BN = _real(seen)
        read: Read = head(seen.regions_BND, real_BN, seen.view.targets[f"{self.kind}.read"])
        picked_BL = targets_BL >= 0
        targets_M, row_M = targets_BL[picked_BL], picked_BL.nonzero()[:, 0]
        logits_MV: Tensor = head.words(read.states_BLH[picked_BL]).float()
        loss_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
        count_B = picked_BL.sum(1)
        sum_B = torch.zeros(len(count_B), device=loss_M.device).index_add(0, row_M, loss_M)
        words_B = weighed(seen.view, sum_B / count_B.clamp(min=1))
        extra_B = self.extra(read, real_BN, picked_BL)
        valid_B = count_B > 0
        parts = {} if extra_B is None else {"words": (words_B.detach(), valid_B)}
        return Score(
            loss_B=words_B if extra_B is None else words_B + extra_B * valid_B,
            valid_B=valid_B,
            hits=(logits_MV.argmax(1) == targets_M).sum(),
            tries=count_B.sum(),
            parts=parts,
        )

    def extra(self, read: Read, real_BN: Tensor, picked_BL: Tensor) -> Tensor | None:
        """What is added to the loss of each row (B,); nothing by default."""
        return None

    def follow(self, task: Task, batch: Batch) -> Following:
        """The image is encoded once, beside a text of its first token."""
        head: Any = task.heads[self.kind]
        start = replace(batch, tokens_BL=batch.tokens_BL[:, :1], real_BL=batch.real_BL[:, :1])
        with torch.no_grad():
            view = task.look(start)
            seen = task.model(replace(view, causal_B=torch.ones_like(view.matched_B)))
        real_BN = _real(seen)

        @torch.no_grad()
        def following(row_S: Tensor, known_ST: Tensor) -> Tensor:
            row_S, known_ST = row_S.to(real_BN.device), known_ST.to(real_BN.device)
            read: Read = head(seen.regions_BND[row_S], real_BN[row_S], known_ST)
            return head.words(read.states_BLH[:, -1]).float().cpu()

        return following


def mean_region(regions_BND: Tensor, real_BN: Tensor) -> Tensor:
    """The mean of a row's real regions, (B, D)."""
    share_BN = real_BN / real_BN.sum(1, keepdim=True)
    return torch.einsum("bn,bnd->bd", share_BN.to(regions_BND), regions_BND)


def memory(inputs: int, width: int) -> nn.LSTMCell:
    """An LSTM that begins by keeping what it knows (a forget bias of 1, as in the paper's code).

    The image must last until the word that it decides.
    """
    cell = nn.LSTMCell(inputs, width)
    with torch.no_grad():
        cell.bias_ih[width : 2 * width] = 1.0
        cell.bias_hh[width : 2 * width] = 0.0
    return cell


def word_table(vocabulary: int, width: int) -> nn.Embedding:
    """Words of a captioner's own, as small as its other inputs."""
    table = nn.Embedding(vocabulary, width)
    nn.init.uniform_(table.weight, -0.1, 0.1)
    return table


def _real(seen: Seen) -> Tensor:
    """bool (B, N): the regions of each row, at least one."""
    real_BN = region_keys(real_regions(seen.view))
    if real_BN is None:
        real_BN = torch.ones_like(seen.regions_BND[:, :, 0], dtype=torch.bool)
    return real_BN
