"""Two streams that meet in cross layers: LXMERT (Tan and Bansal 2019), ViLBERT (Lu et al. 2019).

Post-LN layers, SDPA. B rows, L tokens, N regions, D width, E width of the shared space.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from .. import layers
from ..attend import region_keys, text_keys, text_mask
from ..encoder import Encoder
from ..layers import CrossLayer, Layer, Masks, Size, mean_real, run_layer
from ..model import Model
from ..objective import Seen, Sizes, Towers, View, Words, real_regions
from ..packing import Side, bins_of, causal_ranks, reach
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
    visual_width: int = Field(default=0, ge=0)
    """Of regions; 0 for `width`. At the end a linear layer brings them to `width`."""
    visual_heads: int = Field(default=0, ge=0)
    """Of layers of regions and of looking across; 0 for `heads`."""
    visual_inner: int = Field(default=0, ge=0)
    """As `inner`, of layers of regions; 0 for `inner` where they are as wide, else as wide as they
    are (ViLBERT's 1024)."""
    pair: Literal["text", "product"] = "text"
    """What a pair is judged by: the first word's state (LXMERT), or that times the mean region's
    (ViLBERT, whose first region is the whole image)."""
    visual: AnyVisual = Patches()
    shared: int = Field(default=0, ge=0)
    """Width of the space where the objective `contrastive` compares both sides before they meet;
    0: none."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    epsilon: float = Field(default=1e-12, gt=0)
    """Of layer norms."""
    packed: bool = False
    """Whether padding is left out: the same numbers, to rounding, for fewer tokens."""

    @model_validator(mode="after")
    def _fits(self) -> "TwoStream":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        regions, inner = self.sides[1], max(self.width, self.sides[1].width)
        if regions.width % regions.heads or inner % regions.heads:
            raise ValueError(
                f"visual_width {regions.width}, or {inner} where both sides meet, is not a "
                f"multiple of visual_heads {regions.heads}"
            )
        if self.tied and self.sides[0] != regions:
            raise ValueError("tied weights look both ways at one width; set tied=false")
        self.visual.check(self.image_size)
        return self

    @property
    def sides(self) -> tuple[Size, Size]:
        """Sizes of the layers of words and of regions."""
        text = Size(self.width, self.heads, self.inner)
        width = self.visual_width or self.width
        inner = self.visual_inner or (self.inner if width == self.width else width)
        return text, Size(width, self.visual_heads or self.heads, inner)

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

    def build(self, words: Words) -> "Streams":
        return Streams(self, words.size)

    def begin(self, module: Any) -> None:
        self.visual.begin(module.vision, self.image_size)

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
        self.recompute, self.packed, whole = False, spec.packed, (spec.dropout, spec.epsilon)
        wide = spec.sides[1].width
        self.embed = layers.Words(vocabulary, spec.tokens, spec.width, *whole)
        self.vision = spec.visual.build(wide, spec.image_size, spec.epsilon)
        depths = zip(spec.sides, (spec.text_depth, spec.visual_depth), strict=True)
        self.text_layers, self.visual_layers = (
            nn.ModuleList(Layer(*side[:2], *whole, inner=side.inner) for _ in range(depth))
            for side, depth in depths
        )
        self.cross_layers = nn.ModuleList(
            CrossLayer(*spec.sides, *whole, tied=spec.tied) for _ in range(spec.cross_depth)
        )
        self.narrow = nn.Identity() if wide == spec.width else nn.Linear(wide, spec.width)
        self.pool = nn.Linear(spec.width, spec.width)
        self.pool_image = nn.Linear(wide, spec.width) if spec.pair == "product" else None
        if spec.shared:
            self.share_text = nn.Linear(spec.width, spec.shared)
            self.share_image = nn.Linear(wide, spec.shared)
        self.shares = spec.shared > 0

    @property
    def words(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embed.words

    def forward(self, view: View) -> Seen:
        regions_BND, keys_BN = self.vision(view), region_keys(real_regions(view))
        text, regions = self._sides(view, regions_BND, keys_BN)
        text_BLD = self.embed(view.tokens_BL, text)
        if text and regions:
            regions_BND = regions.take(regions_BND)
        masks = _masks(view, keys_BN, text, regions)
        for layer in self.text_layers:
            text_BLD = run_layer(layer, self.recompute, text_BLD, masks.text)
        for layer in self.visual_layers:
            regions_BND = run_layer(layer, self.recompute, regions_BND, masks.regions)
        met_BLD, met_BND = self._meet(text_BLD, regions_BND, masks)
        if text and regions:
            text_BLD, regions_BND = text.put(text_BLD), regions.put(regions_BND)
            met_BLD, met_BND = text.put(met_BLD), regions.put(met_BND)
        extra = met_BND.shape[1] - view.hidden_BN.shape[1]  # a token of the whole image
        return Seen(
            view=view,
            tokens_BLD=met_BLD,
            regions_BND=self.narrow(met_BND[:, max(0, extra) :]),
            pooled_BD=self._pooled(met_BLD, met_BND, keys_BN),
            word_weights_VD=self.words.weight,
            towers=self._towers(view, text_BLD, regions_BND, keys_BN) if self.shares else None,
        )

    def _pooled(self, met_BLD: Tensor, met_BND: Tensor, keys_BN: Tensor | None) -> Tensor:
        """(B, D) of each pair."""
        pooled_BD = torch.tanh(self.pool(met_BLD[:, 0]))
        if self.pool_image is None:
            return pooled_BD
        return pooled_BD * torch.tanh(self.pool_image(mean_real(met_BND, keys_BN)))

    def _meet(self, text_BLD: Tensor, regions_BND: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        sides = text_BLD, regions_BND
        for layer in self.cross_layers:
            sides = run_layer(layer, self.recompute, sides, masks)
        return sides

    def _sides(
        self, view: View, regions_BND: Tensor, keys_BN: Tensor | None
    ) -> tuple[Side, Side] | tuple[None, None]:
        """What is real on both sides, where padding is left out."""
        if not self.packed:
            return None, None
        if keys_BN is None:
            keys_BN = torch.ones_like(regions_BND[:, :, 0], dtype=torch.bool)
        return Side(view.real_BL), Side(keys_BN)

    def _towers(
        self, view: View, text_BLD: Tensor, regions_BND: Tensor, keys_BN: Tensor | None
    ) -> Towers:
        def pair(row_B: Tensor) -> Tensor:
            causal_B = None if view.causal_B is None else view.causal_B[row_B]
            other = replace(view, real_BL=view.real_BL[row_B], causal_B=causal_B)
            text, regions = self._sides(other, regions_BND, keys_BN)
            masks, words_BLD = _masks(other, keys_BN, text, regions), text_BLD[row_B]
            if text and regions:
                packed = text.take(words_BLD), regions.take(regions_BND)
                met = self._meet(*packed, masks)
                return self._pooled(text.put(met[0]), regions.put(met[1]), keys_BN)
            return self._pooled(*self._meet(words_BLD, regions_BND, masks), keys_BN)

        image_BE = self.share_image(mean_real(regions_BND, keys_BN))
        return Towers(
            text_BE=F.normalize(self.share_text(text_BLD[:, 0]), dim=1),
            image_BE=F.normalize(image_BE, dim=1),
            pair=pair,
        )


def _masks(view: View, keys_BN: Tensor | None, text: Side | None, regions: Side | None) -> Masks:
    if text is None or regions is None:
        return Masks(
            text=text_mask(view.real_BL, view.causal_B),
            words=text_keys(view.real_BL, view.causal_B),
            regions=None if keys_BN is None else keys_BN[:, None, None, :],
        )
    words, seen = bins_of([text], [regions])
    ranks_T = causal_ranks(text, view.causal_B, None)
    low_T = None if ranks_T is None else torch.zeros_like(regions.row_T)
    return Masks(
        text=reach(words, words, ranks_T, ranks_T),
        words=reach(seen, words, low_T, ranks_T),  # of a causal text what `text_keys` says
        regions=reach(seen, seen),
        look=reach(words, seen),
    )
