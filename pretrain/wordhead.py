"""The output layer over words that several objectives have. M tokens, D width, V words."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
