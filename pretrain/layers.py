"""What transformers are made of: attention by SDPA, layers, cross layers, text embeddings.

B rows, Q queries, K keys, S positions, L tokens, D width.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attend import attend
from .packing import Reach, Side

Mask = Tensor | Reach | None
"""Who may look at whom: (B, 1, 1 or Q, K), True where a query may; or of packed tokens, their
`Reach`; None where all may."""

Order = Literal["pre", "post"]
"""Where a layer normalises: its input, as ViT does, or its output, as BERT does."""


class Attention(nn.Module):
    """Multi-head attention with its residual and its norm."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        epsilon: float,
        order: Order = "post",
        context: int = 0,
    ) -> None:
        """`context` is the width of what it attends to, if another; heads share the larger one."""
        super().__init__()
        self.heads, self.dropout, self.order = heads, dropout, order
        context = context or width
        inner = max(width, context)
        self.query, self.key = nn.Linear(width, inner), nn.Linear(context, inner)
        self.value, self.out = nn.Linear(context, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x_BQD: Tensor, mask: Mask, context_BKD: Tensor | None = None) -> Any:
        """Attends to `context_BKD`, or else to itself."""
        queries_BQD = self.norm(x_BQD) if self.order == "pre" else x_BQD
        keys_BKD = queries_BQD if context_BKD is None else context_BKD
        found_BQD = attend(
            self.query(queries_BQD),
            self.key(keys_BKD),
            self.value(keys_BKD),
            heads=self.heads,
            mask=mask,
            dropout=self.dropout if self.training else 0.0,
        )
        found_BQD = self.out(found_BQD)
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

    def forward(self, x_BSD: Tensor, mask: Mask) -> Tensor:
        x_BSD = self.attend(x_BSD, mask)
        if self.order == "pre":
            return x_BSD + self.think(self.norm(x_BSD))
        return self.norm(x_BSD + self.think(x_BSD))


class Size(NamedTuple):
    """Of the layers of one stream."""

    width: int
    heads: int
    inner: int
    """Width between the two layers of a perceptron; 0 for four times the width."""


class CrossLayer(nn.Module):
    """Each side attends to the other, then to itself (LXMERT, Tan and Bansal 2019).

    With `tied` one set of weights looks both ways, as in LXMERT; else each side has its own, as in
    ViLBERT (Lu et al. 2019), where regions may also be of another width.
    """

    def __init__(
        self, text: "Size", vision: "Size", dropout: float, epsilon: float, tied: bool
    ) -> None:
        super().__init__()
        how = (vision.heads, dropout, epsilon, "post")
        self.read = Attention(vision.width, *how, text.width)
        self.look = None if tied else Attention(text.width, *how, vision.width)
        self.text = Layer(text.width, text.heads, dropout, epsilon, inner=text.inner)
        self.vision = Layer(vision.width, vision.heads, dropout, epsilon, inner=vision.inner)

    def forward(self, sides: tuple[Tensor, Tensor], masks: "Masks") -> tuple[Tensor, Tensor]:
        text_BLD, regions_BND = sides
        look = self.look or self.read
        new_BLD = look(text_BLD, masks.look, regions_BND)
        new_BND = self.read(regions_BND, masks.words, text_BLD)
        return self.text(new_BLD, masks.text), self.vision(new_BND, masks.regions)


class Masks:
    """Who may look at whom in two streams: words at words, regions at words, regions at regions,
    and words at regions, which is the same but for packed tokens."""

    def __init__(self, text: Mask, words: Mask, regions: Mask, look: Mask = None) -> None:
        self.text, self.words, self.regions = text, words, regions
        self.look = regions if look is None else look


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

    def forward(
        self, tokens_BL: Tensor, packed: Side | None = None, more_BD: Tensor | None = None
    ) -> Tensor:
        """(B, L, D), or only the real ones, (1, T, D); `more_BD` is added to each word of a row."""
        if packed is None:
            text_BLD = self.words(tokens_BL) + self.places[: tokens_BL.shape[1]]
            text_BLD = text_BLD if more_BD is None else text_BLD + more_BD[:, None]
        else:
            real_T = tokens_BL[packed.row_T, packed.place_T]
            text_BLD = (self.words(real_T) + self.places[packed.place_T])[None]
            text_BLD = text_BLD if more_BD is None else text_BLD + more_BD[packed.row_T]
        return self.dropout(self.norm(text_BLD))


def run_layer(layer: nn.Module, recompute: bool, *inputs: Any) -> Any:
    """A layer's output; with `recompute` its activations are computed again in backward."""
    if recompute and layer.training:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


def mean_real(x_BND: Tensor, real_BN: Tensor | None) -> Tensor:
    """(B, D): the mean of each row's real positions, of all where None; 0 where it has none."""
    if real_BN is None:
        return x_BND.mean(1)
    count_B1 = real_BN.sum(1, keepdim=True).clamp(min=1)
    return (x_BND * real_BN[..., None]).sum(1) / count_B1
