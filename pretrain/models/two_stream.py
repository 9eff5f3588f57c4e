"""Two streams that meet in cross layers: LXMERT (Tan and Bansal 2019), ViLBERT (Lu et al. 2019).

Post-LN layers, SDPA. B rows, L tokens, N regions, D width, E width of the shared space.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from .. import layers
from ..attend import region_keys, text_keys, text_mask
from ..layers import CrossLayer, Layer, Masks, run_layer
from ..model import Model
from ..objective import Seen, Sizes, Towers, View, Words, real_regions
from ..visual import AnyVisual
from ..visuals import Patches


class TwoStream(Model):
    """Words and regions each in layers of their own, then in cross layers."""

    kind: ClassVar[str] = "two_stream"
    width: int = Field(default=128, ge=8)
    inner: int = Field(default=0, ge=0)
    """Width between the two layers of a perceptron; 0 for four times `width`."""
    heads: int = Field(default=4, ge=1)
    text_depth: int = Field(default=3, ge=0)
    visual_depth: int = Field(default=2, ge=0)
    cross_depth: int = Field(default=2, ge=1)
    tied: bool = True
    """Whether one set of weights looks both ways in a cross layer (LXMERT), or two (ViLBERT)."""
    visual: AnyVisual = Patches()
    shared: int = Field(default=0, ge=0)
    """Width of the space where the objective `contrastive` compares both sides before they meet;
    0: none."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    epsilon: float = Field(default=1e-12, gt=0)
    """Of layer norms."""

    @model_validator(mode="after")
    def _fits(self) -> "TwoStream":
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

    def look(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        return self.visual.look(arrays)

    def build(self, words: Words) -> "Streams":
        return Streams(self, words.size)

    def sizes(self, words: Words) -> Sizes:
        return Sizes(
            width=self.width,
            vocabulary=words.size,
            regions=self.regions,
            region_values=self.visual.region_values(self.image_size),
            epsilon=self.epsilon,
            shared=self.shared,
        )


class Streams(nn.Module):
    """view -> Seen."""

    def __init__(self, spec: TwoStream, vocabulary: int) -> None:
        super().__init__()
        self.recompute, whole = False, (spec.dropout, spec.epsilon)
        size = (spec.width, spec.heads, *whole)
        self.embed = layers.Words(vocabulary, spec.tokens, spec.width, *whole)
        self.vision = spec.visual.build(spec.width, spec.image_size, spec.epsilon)
        self.text_layers, self.visual_layers = (
            nn.ModuleList(Layer(*size, inner=spec.inner) for _ in range(depth))
            for depth in (spec.text_depth, spec.visual_depth)
        )
        self.cross_layers = nn.ModuleList(
            CrossLayer(*size, inner=spec.inner, tied=spec.tied) for _ in range(spec.cross_depth)
        )
        self.pool = nn.Linear(spec.width, spec.width)
        if spec.shared:
            self.share_text = nn.Linear(spec.width, spec.shared)
            self.share_image = nn.Linear(spec.width, spec.shared)
        self.shares = spec.shared > 0

    @property
    def words(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embed.words

    def forward(self, view: View) -> Seen:
        text_BLD, regions_BND = self.embed(view.tokens_BL), self.vision(view)
        keys_BN = region_keys(real_regions(view))
        masks = Masks(
            text=text_mask(view.real_BL, view.causal_B),
            words=text_keys(view.real_BL, view.causal_B),
            regions=None if keys_BN is None else keys_BN[:, None, None, :],
        )
        for layer in self.text_layers:
            text_BLD = run_layer(layer, self.recompute, text_BLD, masks.text)
        for layer in self.visual_layers:
            regions_BND = run_layer(layer, self.recompute, regions_BND, masks.regions)
        met_BLD, met_BND = self._meet(text_BLD, regions_BND, masks)
        extra = len(met_BND[0]) - view.hidden_BN.shape[1]  # a token of the whole image
        return Seen(
            view=view,
            tokens_BLD=met_BLD,
            regions_BND=met_BND[:, max(0, extra) :],
            pooled_BD=torch.tanh(self.pool(met_BLD[:, 0])),
            word_weights_VD=self.words.weight,
            towers=self._towers(text_BLD, regions_BND, masks) if self.shares else None,
        )

    def _meet(self, text_BLD: Tensor, regions_BND: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        sides = text_BLD, regions_BND
        for layer in self.cross_layers:
            sides = run_layer(layer, self.recompute, sides, masks)
        return sides

    def _towers(self, text_BLD: Tensor, regions_BND: Tensor, masks: Masks) -> Towers:
        def pair(row_B: Tensor) -> Tensor:
            met_BLD, _ = self._meet(text_BLD[row_B], regions_BND, masks.rows(row_B))
            return torch.tanh(self.pool(met_BLD[:, 0]))

        if masks.regions is None:
            whole_BD = regions_BND.mean(1)
        else:
            real_BN1 = masks.regions[:, 0, 0, :, None]
            whole_BD = (regions_BND * real_BN1).sum(1) / real_BN1.sum(1).clamp(min=1)
        return Towers(
            text_BE=F.normalize(self.share_text(text_BLD[:, 0]), dim=1),
            image_BE=F.normalize(self.share_image(whole_BD), dim=1),
            pair=pair,
        )
