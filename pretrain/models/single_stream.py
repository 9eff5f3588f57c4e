"""One stream of words and regions: VisualBERT (Li et al. 2019), ViLT (Kim et al. 2021), VL-BERT
(Su et al. 2020).

SDPA. B rows, L tokens, N regions, D width.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .. import layers
from ..attend import joint_mask
from ..encoder import Encoder
from ..layers import Layer, Mask, Order, mean_real, run_layer
from ..model import Model
from ..objective import Seen, Sizes, View, Words, real_regions
from ..packing import Side, bins_of, causal_ranks, reach
from ..visual import AnyVisual
from ..visuals import Patches


class SingleStream(Model):
    """Words and regions in one sequence, in the form of BERT or of ViT.

    `post` normalises regions like words and each layer's output; `pre` marks the two sides after
    the words were normalised, and normalises each layer's input and the end.
    """

    kind: ClassVar[str] = "single_stream"
    width: int = Field(default=128, ge=8)
    inner: int = Field(default=0, ge=0)
    """Width between the two layers of a perceptron; 0 for four times `width`."""
    heads: int = Field(default=4, ge=1)
    depth: int = Field(default=3, ge=1)
    order: Order = "pre"
    whole: bool = False
    """Whether each word gets what the whole image looks like, as in VL-BERT: a linear layer of the
    mean of its regions, hidden ones as they are hidden."""
    visual: AnyVisual = Patches()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    epsilon: float = Field(default=1e-12, gt=0)
    """Of layer norms."""
    packed: bool = False
    """Whether padding is left out: the same numbers, to rounding, for fewer tokens."""

    @model_validator(mode="after")
    def _fits(self) -> "SingleStream":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        self.visual.check(self.image_size)
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text"}) | self.visual.needs

    @property
    def regions(self) -> int:
        return self.visual.regions(self.image_size)

    @property
    def arrays(self) -> Mapping[str, tuple[int, int]]:
        return self.visual.arrays

    @property
    def eye(self) -> Encoder | None:
        return self.visual.eye

    def look(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        return self.visual.look(arrays)

    def build(self, words: Words) -> "Stream":
        return Stream(self, words.size)

    def begin(self, module: Any) -> None:
        self.visual.begin(module.vision, self.image_size)

    def sizes(self, words: Words) -> Sizes:
        return Sizes(
            width=self.width,
            vocabulary=words.size,
            regions=self.regions,
            region_values=self.visual.region_values(self.image_size),
            epsilon=self.epsilon,
        )


class Stream(nn.Module):
    """view -> Seen."""

    def __init__(self, spec: SingleStream, vocabulary: int) -> None:
        super().__init__()
        self.recompute, self.order, self.packed = False, spec.order, spec.packed
        whole = (spec.dropout, spec.epsilon)
        self.embed = layers.Words(vocabulary, spec.tokens, spec.width, *whole)
        self.vision = spec.visual.build(spec.width, spec.image_size, spec.epsilon)
        self.layers = nn.ModuleList(
            Layer(spec.width, spec.heads, *whole, spec.order, spec.inner) for _ in range(spec.depth)
        )
        self.whole = nn.Linear(spec.width, spec.width) if spec.whole else None
        if spec.order == "pre":
            self.sides = nn.Parameter(torch.zeros(2, spec.width))
            self.norm = nn.LayerNorm(spec.width, eps=spec.epsilon)
            nn.init.normal_(self.sides, std=0.02)
        self.pool = nn.Linear(spec.width, spec.width)

    @property
    def words(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embed.words

    def forward(self, view: View) -> Seen:
        regions_BND, real_BN = self.vision(view), real_regions(view)
        extra = regions_BND.shape[1] - view.hidden_BN.shape[1]  # a token of the whole image
        if real_BN is None:
            real_BN = torch.ones_like(regions_BND[:, :, 0], dtype=torch.bool)
        run = self._packed if self.packed else self._padded
        whole_BD = self.whole(mean_real(regions_BND, real_BN)) if self.whole else None
        text_BLD, regions_BND = run(view, regions_BND, real_BN, whole_BD)
        return Seen(
            view=view,
            tokens_BLD=text_BLD,
            regions_BND=regions_BND[:, max(0, extra) :],
            pooled_BD=torch.tanh(self.pool(text_BLD[:, 0])),
            word_weights_VD=self.words.weight,
        )

    def _padded(
        self, view: View, regions_BND: Tensor, real_BN: Tensor, whole_BD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        text_BLD = self.embed(view.tokens_BL, more_BD=whole_BD)
        mask = joint_mask(view.real_BL, real_BN, view.causal_B)
        hidden_BSD = self._layers(text_BLD, regions_BND, mask)
        text_BLD, regions_BND = hidden_BSD.tensor_split([text_BLD.shape[1]], dim=1)
        return text_BLD, regions_BND.masked_fill(~real_BN[..., None], 0.0)  # as packed

    def _packed(
        self, view: View, regions_BND: Tensor, real_BN: Tensor, whole_BD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same of real tokens alone; zeros where there are none. T real tokens."""
        text, regions = Side(view.real_BL), Side(real_BN)
        [bins] = bins_of([text, regions])
        ranks_T = causal_ranks(text, view.causal_B, regions)
        mask = reach(bins, bins, ranks_T, ranks_T)
        text_1TD = self.embed(view.tokens_BL, text, whole_BD)
        hidden_1TD = self._layers(text_1TD, regions.take(regions_BND), mask)
        length = text_1TD.shape[1]
        return text.put(hidden_1TD[:, :length]), regions.put(hidden_1TD[:, length:])

    def _layers(self, text_BLD: Tensor, regions_BND: Tensor, mask: Mask) -> Tensor:
        if self.order == "pre":
            text_BLD, regions_BND = text_BLD + self.sides[0], regions_BND + self.sides[1]
        else:
            regions_BND = self.embed.dropout(self.embed.norm(regions_BND))
        hidden_BSD = torch.cat([text_BLD, regions_BND], dim=1)
        for layer in self.layers:
            hidden_BSD = run_layer(layer, self.recompute, hidden_BSD, mask)
        return self.norm(hidden_BSD) if self.order == "pre" else hidden_BSD
