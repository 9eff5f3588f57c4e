"""A single-stream vision-language transformer over words and grid regions.

After VisualBERT (Li et al. 2019) and UNITER (Chen et al. 2020), on grid features as in Pixel-BERT
(Huang et al. 2020); pre-LN blocks and SDPA. B rows, L tokens, N regions, S = L + N, D width.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..model import Model
from ..objective import Seen, Sizes, View, Words

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
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text", "image"} if self.streams == "both" else {self.streams})

    def build(self, words: Words) -> "VisionLanguage":
        return VisionLanguage(self, words.size)

    def sizes(self, words: Words) -> Sizes:
        cell = self.image_size // self.grid
        return Sizes(
            width=self.width,
            vocabulary=words.size,
            regions=self.grid**2,
            region_values=3 * cell * cell,
        )


class VisionLanguage(nn.Module):
    """view -> Seen, one pass of the joint encoder."""

    def __init__(self, spec: Vlp, vocabulary: int) -> None:
        super().__init__()
        self.streams, self.recompute = spec.streams, False
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
        text_BLD = self.words(view.tokens_BL) + self.places[: view.tokens_BL.shape[1]]
        text_BLD = self.norm_text(text_BLD)
        regions_BND, whole_B1D = self.vision(view.image_BCHW, view.hidden_BN)
        if self.streams != "text":
            text_BLD = text_BLD + whole_B1D
        real_BL, length = view.real_BL, text_BLD.shape[1]
        if self.streams == "image":  # the first token stays: it is where the pair is read
            real_BL = real_BL & (torch.arange(length, device=real_BL.device) == 0)
        seen_BN = torch.full_like(view.hidden_BN, self.streams != "text")
        real_BS = torch.cat([real_BL, seen_BN], dim=1)
        hidden_BSD = torch.cat([text_BLD, regions_BND], dim=1)
        mask_B11S = real_BS[:, None, None, :]
        for block in self.blocks:
            if self.recompute and self.training:
                hidden_BSD = checkpoint(block, hidden_BSD, mask_B11S, use_reentrant=False)
            else:
                hidden_BSD = block(hidden_BSD, mask_B11S)
        hidden_BSD = self.norm(hidden_BSD)
        return Seen(
            view=view,
            tokens_BLD=hidden_BSD[:, :length],
            regions_BND=hidden_BSD[:, length:],
            pooled_BD=hidden_BSD[:, 0],
            word_weights_VD=self.words.weight,
        )


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

    def forward(self, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        x_BSD = x_BSD + self._attend(self.norm_attend(x_BSD), mask_B11S)
        return x_BSD + self.think(self.norm_think(x_BSD))

    def _attend(self, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BSD).chunk(3, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        heads_BHSD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S, dropout_p=dropout)
        return self.out(heads_BHSD.transpose(1, 2).flatten(2))
