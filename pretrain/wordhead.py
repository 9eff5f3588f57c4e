"""The output layer over words that several objectives have, and how its words are scored.

B rows, L tokens, M scored tokens, D width, V words.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .objective import Score, Seen


class WordHead(nn.Module):
    """BERT's transform, then the word embeddings themselves as the output layer."""

    def __init__(self, width: int, vocabulary: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.transform = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=epsilon)
        )
        self.bias_V = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden_MD: Tensor, word_weights_VD: Tensor) -> Tensor:
        return F.linear(self.transform(hidden_MD), word_weights_VD, self.bias_V)


def score_words(head: WordHead, seen: Seen, targets_BL: Tensor) -> Score:
    """The mean -log p of each row's wanted words; rows with a foreign text have none.

    Args:
        head: a `WordHead`.
        seen: the encoder's pass.
        targets_BL: id of the word that is wanted at a place, below 0 where none is.
    """
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
