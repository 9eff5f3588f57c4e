"""A single-stream vision-language transformer over words and grid regions.

After VisualBERT (Li et al. 2019) and UNITER (Chen et al. 2020), on grid features as in Pixel-BERT
(Huang et al. 2020); pre-LN blocks and SDPA. B rows, L tokens, N regions, S = L + N, D width.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attend import attend, joint_mask
from ..model import Model
from ..objective import Seen, Sizes, View, Words
from ..packing import Reach, Side, bins_of, causal_ranks, reach

Streams = Literal["both", "text", "image"]


class Vlp(Model):
    """Words and regions in one sequence; the first token's state stands for the pair."""

    kind: ClassVar[str] = "vlp"
    width: int = Field(default=128, ge=8)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    grid: int = Field(default=4, ge=1)
    """Regions a side: the image becomes grid x grid regions."""
    stem: int = Field(default=32, ge=4)
    """Channels after the first convolution, doubled by each next one up to `width`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    packed: bool = False
    """Whether padding is left out: the same numbers, to rounding, for fewer tokens."""
    streams: Streams = "both"
    """`text` and `image` are the blind controls: one of the two panels is covered."""

    @model_validator(mode="after")
    def _fits(self) -> "Vlp":
        stages = self.image_size / self.grid
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if stages < 2 or stages != int(stages) or int(stages) & (int(stages) - 1):
            raise ValueError(
                f"image_size {self.image_size} / grid {self.grid} must be a power of two, 2 or more"
            )
        if odd := [name for name in ("stem", "width") if getattr(self, name) % 4]:
            raise ValueError(f"{odd[0]} {getattr(self, odd[0])} is not a multiple of 4, its groups")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text", "image"} if self.streams == "both" else {self.streams})

    @property
    def regions(self) -> int:
        return self.grid**2

    def build(self, words: Words) -> "VisionLanguage":
        return VisionLanguage(self, words.size)

    def sizes(self, words: Words) -> Sizes:
        cell = self.image_size // self.grid
        return Sizes(
            width=self.width,
            vocabulary=words.size,
            regions=self.regions,
            region_values=3 * cell * cell,
        )


class VisionLanguage(nn.Module):
    """view -> Seen, one pass of the joint encoder."""

    def __init__(self, spec: Vlp, vocabulary: int) -> None:
        super().__init__()
        self.streams, self.recompute, self.packed = spec.streams, False, spec.packed
        self.words = nn.Embedding(vocabulary, spec.width)
        self.places = nn.Parameter(torch.zeros(spec.tokens, spec.width))
        self.vision = GridFeatures(spec)
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.dropout) for _ in range(spec.depth)
        )
        self.norm_text, self.norm = nn.LayerNorm(spec.width), nn.LayerNorm(spec.width)
        # Also the output layer of `mlm`: BERT's 0.02 would start it flat in so narrow a model.
        nn.init.normal_(self.words.weight, std=spec.width**-0.5)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, view: View) -> Seen:
        regions_BND, whole_B1D = self.vision(view.image_BCHW, view.hidden_BN)
        real_BL, length = view.real_BL, view.tokens_BL.shape[1]
        if self.streams == "image":  # the first token stays: it is where the pair is read
            real_BL = real_BL & (torch.arange(length, device=real_BL.device) == 0)
        seen_BN = torch.full_like(view.hidden_BN, self.streams != "text")
        run = self._packed if self.packed and self.streams == "both" else self._padded
        text_BLD, regions_BND = run(replace(view, real_BL=real_BL), regions_BND, seen_BN, whole_B1D)
        return Seen(
            view=view,
            tokens_BLD=text_BLD,
            regions_BND=regions_BND,
            pooled_BD=text_BLD[:, 0],
            word_weights_VD=self.words.weight,
        )

    def _padded(
        self, view: View, regions_BND: Tensor, seen_BN: Tensor, whole_B1D: Tensor
    ) -> tuple[Tensor, Tensor]:
        length = view.tokens_BL.shape[1]
        text_BLD = self.norm_text(self.words(view.tokens_BL) + self.places[:length])
        if self.streams != "text":
            text_BLD = text_BLD + whole_B1D
        hidden_BSD = torch.cat([text_BLD, regions_BND], dim=1)
        hidden_BSD = self._blocks(hidden_BSD, joint_mask(view.real_BL, seen_BN, view.causal_B))
        return hidden_BSD[:, :length], hidden_BSD[:, length:]

    def _packed(
        self, view: View, regions_BND: Tensor, seen_BN: Tensor, whole_B1D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of real tokens alone; zeros where there are none. T real tokens."""
        text, regions = Side(view.real_BL), Side(seen_BN)
        [bins] = bins_of([text, regions])
        ranks_T = causal_ranks(text, view.causal_B, regions)
        text_TD = self.words(view.tokens_BL[text.row_T, text.place_T]) + self.places[text.place_T]
        text_TD = self.norm_text(text_TD)
        if self.streams != "text":
            text_TD = text_TD + whole_B1D[text.row_T, 0]
        hidden_1TD = torch.cat([text_TD[None], regions.take(regions_BND)], dim=1)
        hidden_1TD = self._blocks(hidden_1TD, reach(bins, bins, ranks_T, ranks_T))
        words = len(text_TD)
        return text.put(hidden_1TD[:, :words]), regions.put(hidden_1TD[:, words:])

    def _blocks(self, hidden_BSD: Tensor, mask: Tensor | Reach) -> Tensor:
        for block in self.blocks:
            if self.recompute and self.training:
                hidden_BSD = checkpoint(block, hidden_BSD, mask, use_reentrant=False)
            else:
                hidden_BSD = block(hidden_BSD, mask)
        return self.norm(hidden_BSD)


class GridFeatures(nn.Module):
    """Strided convolutions to a grid of regions, each with its place and a mark when hidden."""

    def __init__(self, spec: Vlp) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side, out = 3, spec.image_size, spec.stem
        while side > spec.grid:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)]
            layers += [nn.GroupNorm(4, out), nn.ReLU()]
            channels, side, out = out, side // 2, min(2 * out, spec.width)
        self.convolve = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(channels, spec.width), nn.LayerNorm(spec.width))
        self.places = nn.Parameter(torch.zeros(spec.grid**2, spec.width))
        self.whole = nn.Sequential(nn.Linear(2 * channels, spec.width), nn.LayerNorm(spec.width))
        self.hole = nn.Parameter(torch.zeros(spec.width))
        nn.init.normal_(self.places, std=0.5)
        nn.init.normal_(self.hole, std=0.5)

    def forward(self, image_BCHW: Tensor, hidden_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the regions (B, N, D) and the whole image (B, 1, D)."""
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        grid_BNC = self.convolve(image_BCHW).flatten(2).transpose(1, 2)
        pooled_B1C = torch.cat([grid_BNC.mean(1, True), grid_BNC.amax(1, True)], dim=2)
        regions_BND = self.project(grid_BNC) + self.places + hidden_BN[..., None] * self.hole
        return regions_BND, self.whole(pooled_B1C)


class Block(nn.Module):
    """Pre-LN transformer block; attention by SDPA."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attend, self.norm_think = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BSD: Tensor, mask: Tensor | Reach) -> Tensor:
        q, k, v = self.qkv(self.norm_attend(x_BSD)).chunk(3, dim=2)
        dropout = self.dropout if self.training else 0.0
        found_BSD = attend(q, k, v, heads=self.heads, mask=mask, dropout=dropout)
        x_BSD = x_BSD + self.out(found_BSD)
        return x_BSD + self.think(self.norm_think(x_BSD))
