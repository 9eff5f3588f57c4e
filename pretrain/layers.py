"""What transformers are made of: attention by SDPA, layers, cross layers, text embeddings.

B rows, Q queries, K keys, S positions, L tokens, D width.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Order = Literal["pre", "post"]
"""Where a layer normalises: its input, as ViT does, or its output, as BERT does."""


class Attention(nn.Module):
    """Multi-head attention with its residual and its norm."""

    def __init__(
        self, width: int, heads: int, dropout: float, epsilon: float, order: Order = "post"
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.order = heads, dropout, order
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x_BQD: Tensor, mask: Tensor | None, context_BKD: Tensor | None = None) -> Any:
        """Attends to `context_BKD`, or else to itself; the mask (B, 1, 1 or Q, K) is True where a
        query may look."""
        queries_BQD = self.norm(x_BQD) if self.order == "pre" else x_BQD
        keys_BKD = queries_BQD if context_BKD is None else context_BKD
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries_BQD), self.key(keys_BKD), self.value(keys_BKD))
        )
        dropout = self.dropout if self.training else 0.0
        found_BHQD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        found_BQD = self.out(found_BHQD.transpose(1, 2).flatten(2))
        found_BQD = x_BQD + F.dropout(found_BQD, self.dropout, self.training)
        return self.norm(found_BQD) if self.order == "post" else found_BQD


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        epsilon: float,
        order: Order = "post",
        inner: int = 0,
    ) -> None:
        super().__init__()
        self.order, inner = order, inner or 4 * width
        self.attend = Attention(width, heads, dropout, epsilon, order)
        self.think = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x_BSD: Tensor, mask: Tensor | None) -> Tensor:
        x_BSD = self.attend(x_BSD, mask)
        if self.order == "pre":
            return x_BSD + self.think(self.norm(x_BSD))
        return self.norm(x_BSD + self.think(x_BSD))


class CrossLayer(nn.Module):
    """Each side attends to the other, then to itself (LXMERT, Tan and Bansal 2019).

    With `tied` one set of weights looks both ways, as in LXMERT; else each side has its own, as in
    ViLBERT (Lu et al. 2019).
    """

    def __init__(
        self, width: int, heads: int, dropout: float, epsilon: float, inner: int, tied: bool
    ) -> None:
        super().__init__()
        self.read = Attention(width, heads, dropout, epsilon)
        self.look = None if tied else Attention(width, heads, dropout, epsilon)
        self.text = Layer(width, heads, dropout, epsilon, inner=inner)
        self.vision = Layer(width, heads, dropout, epsilon, inner=inner)

    def forward(self, sides: tuple[Tensor, Tensor], masks: "Masks") -> tuple[Tensor, Tensor]:
        text_BLD, regions_BND = sides
        look = self.look or self.read
        new_BLD = look(text_BLD, masks.regions, regions_BND)
        new_BND = self.read(regions_BND, masks.words, text_BLD)
        return self.text(new_BLD, masks.text), self.vision(new_BND, masks.regions)


class Masks:
    """Who may look at whom in two streams; True where one may, None where all may at all."""

    def __init__(self, text: Tensor, words: Tensor, regions: Tensor | None) -> None:
        self.text, self.words, self.regions = text, words, regions

    def rows(self, row_B: Tensor) -> "Masks":
        """The masks where each image meets the text of another row."""
        return Masks(self.text[row_B], self.words[row_B], self.regions)


class Words(nn.Module):
    """Words with their places, as BERT embeds them; its token type 0 is part of the places."""

    def __init__(
        self, vocabulary: int, tokens: int, width: int, dropout: float, epsilon: float
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        text_BLD = self.words(tokens_BL) + self.places[: tokens_BL.shape[1]]
        return self.dropout(self.norm(text_BLD))


def run_layer(layer: nn.Module, recompute: bool, *inputs: Any) -> Any:
    """A layer's output; with `recompute` its activations are computed again in backward."""
    if recompute and layer.training:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
