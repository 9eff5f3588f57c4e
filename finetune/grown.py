"""A word embedding that has grown: the old rows are frozen, the new ones are trained.

B rows, L tokens, V words of the base, N new words, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GrownWords(nn.Module):
    """ids (B, L) -> (B, L, D), as an embedding of V + N words."""

    def __init__(self, old: nn.Embedding, rows_ND: Tensor) -> None:
        super().__init__()
        self.weight = old.weight
        """Of the base (V, D)."""
        self.rows = nn.Parameter(rows_ND.clone())
        self.embedding_dim = old.embedding_dim
        self.num_embeddings = old.num_embeddings + len(rows_ND)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        first = len(self.weight)
        new_BL = tokens_BL >= first
        old_BLD = F.embedding(tokens_BL.masked_fill(new_BL, 0), self.weight)
        rows_BLD = F.embedding((tokens_BL - first).clamp(min=0), self.rows)
        return torch.where(new_BL[..., None], rows_BLD, old_BLD)

    def plain(self) -> nn.Embedding:
        """One embedding of all words."""
        weight_VD = torch.cat([self.weight.detach(), self.rows.detach()])
        return nn.Embedding.from_pretrained(weight_VD.clone(), freeze=False)


def words_of(model: Any) -> Any:
    """The word embedding of a denoiser that has a text encoder; None of other models."""
    context: Any = getattr(model, "context", None)
    if hasattr(context, "clip"):
        return context.clip.get_input_embeddings()
    return None if context is None else getattr(model, "words", None)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module in the place of another, wherever the model holds it."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # with all names of a child that has two
            if child is old:
                setattr(parent, name, new)
