"""diffusers' UNet2DConditionModel, the denoiser of latent diffusion, here on pixels.

B rows, C channels, H x W pixels, L tokens, D width.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from ..diffusion.context import TextContext
from ..model import Model
from ..objective import Denoised, Sizes, View, Words


class Unet(Model):
    """Residual blocks at falling sizes, all but the first with attention to themselves and text."""

    kind: ClassVar[str] = "unet"
    gives: ClassVar[type] = Denoised
    channels: tuple[int, ...] = Field(default=(64, 128), min_length=2)
    """Of each level; each next level has half the height and width."""
    layers: int = Field(default=1, ge=1)
    """Residual blocks a level, on the way down."""
    heads: int = Field(default=4, ge=1)
    groups: int = Field(default=16, ge=1)
    """Of group norm; must divide all channels."""
    width: int = Field(default=128, ge=8)
    """Of the text states."""
    text_depth: int = Field(default=1, ge=0)
    """Blocks of the text encoder, which is trained too."""

    @model_validator(mode="after")
    def _fits(self) -> "Unet":
        halved = 2 ** (len(self.channels) - 1)
        if self.image_size % halved:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {halved}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        odd = [n for n in self.channels if n % self.groups or n % self.heads]
        if odd:
            raise ValueError(
                f"channels {odd[0]} is not a multiple of groups {self.groups} and of heads "
                f"{self.heads}"
            )
        return self

    def build(self, words: Words) -> "ConditionalUnet":
        return ConditionalUnet(self, words.size)

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.width, vocabulary=words.size)


class ConditionalUnet(nn.Module):
    """view -> Denoised. Images of any size that can be halved at every level."""

    def __init__(self, spec: Unet, vocabulary: int) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # for seconds

        super().__init__()
        self.words = nn.Embedding(vocabulary, spec.width)
        self.context = TextContext(spec.width, spec.tokens, spec.text_depth, spec.heads)
        deeper = len(spec.channels) - 1
        made: Any = UNet2DConditionModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=spec.channels,
            layers_per_block=spec.layers,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
            up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
            cross_attention_dim=spec.width,
            attention_head_dim=spec.heads,  # diffusers means the number of heads
            norm_num_groups=spec.groups,
        )
        self.unet = made
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, view: View) -> Denoised:
        image_BCHW, time_B = view.image_BCHW, view.time_B
        if time_B is None:
            time_B = torch.zeros(len(image_BCHW), device=image_BCHW.device)
        context_BLD = self.context(self.words(view.tokens_BL), view.real_BL)
        said = self.unet(
            image_BCHW,
            time_B,
            encoder_hidden_states=context_BLD,
            encoder_attention_mask=view.real_BL,
        )
        return Denoised(view, said.sample)
