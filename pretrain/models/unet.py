"""diffusers' UNet2DConditionModel, the denoiser of latent diffusion.

B rows, C channels, H x W cells of a latent (or pixels), L tokens, D width.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..denoiser import Denoiser, read_context, told_beside, told_classes, told_place
from ..diffusion.context import ClipContext, TextContext
from ..objective import Asked, Denoised, View, Words

_DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
_UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
_PLACE = 256
"""Waves of each number that says where a row was cut from."""


class Unet(Denoiser):
    """Residual blocks at falling sizes, with attention to themselves and to the text."""

    kind: ClassVar[str] = "unet"
    entrance: ClassVar[str] = "unet.conv_in.weight"
    channels: tuple[int, ...] = Field(default=(64, 128), min_length=2)
    """Of each level; each next level has half the height and width."""
    layers: int = Field(default=1, ge=1)
    """Residual blocks a level, on the way down."""
    heads: int = Field(default=4, ge=1)
    groups: int = Field(default=16, ge=1)
    """Of group norm; must divide all channels."""
    text: Literal["blocks", "clip"] = "blocks"
    """Its own text encoder: blocks that see real tokens alone, or transformers' CLIP, which reads
    padding too, as Stable Diffusion does: what pipelines of diffusers can hold."""
    attends: tuple[bool, ...] | None = None
    """Which levels attend; by default all but the first. Stable Diffusion: all but the last."""
    norm: Literal["add", "scale_shift"] = "add"
    """How time, class and place steer its blocks: added, as in Stable Diffusion, or as scale and
    shift of the group norms (adaptive group norm, Dhariwal and Nichol 2021)."""

    @property
    def cell(self) -> int:
        return 2 ** (len(self.channels) - 1)

    @property
    def levels(self) -> tuple[bool, ...]:
        """Whether each level attends."""
        return self.attends or (False, *(True,) * (len(self.channels) - 1))

    @model_validator(mode="after")
    def _fits(self) -> "Unet":
        if len(self.levels) != len(self.channels):
            raise ValueError(f"attends {self.levels} is not one for each of {self.channels}")
        if self.texts and self.text == "clip":
            raise ValueError("texts names frozen encoders and text=clip a trained one; leave one")
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


def _place(width: int) -> dict[str, Any]:
    """Settings of diffusers' U-Net for six numbers and a pooled text of this width: SDXL's."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _PLACE,
        "projection_class_embeddings_input_dim": width + 6 * _PLACE,
    }


class ConditionalUnet(nn.Module):
    """view -> Denoised. Images of any size that can be halved at every level."""

    def __init__(self, spec: Unet, vocabulary: int) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # for seconds

        super().__init__()
        self.classes, self.recompute, self.seen = len(spec.classes), False, spec.seen
        self.placed, self.factor = spec.placed, spec.first_stage.factor
        if spec.texts:
            self.context: nn.Module = spec.frozen_context()
        elif spec.text == "clip":
            self.context = ClipContext(
                spec.width, spec.tokens, spec.text_depth, spec.heads, vocabulary
            )
        else:
            self.words = nn.Embedding(vocabulary, spec.width)
            self.context = TextContext(spec.width, spec.tokens, spec.text_depth, spec.heads)
            nn.init.normal_(self.words.weight, std=0.02)
        down = [_DOWN[attends] for attends in spec.levels]
        up = [_UP[attends] for attends in reversed(spec.levels)]
        made: Any = UNet2DConditionModel(
            in_channels=spec.channels_in,
            out_channels=spec.first_stage.channels,
            block_out_channels=spec.channels,
            layers_per_block=spec.layers,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            cross_attention_dim=spec.width,
            attention_head_dim=spec.heads,  # diffusers means the number of heads
            norm_num_groups=spec.groups,
            num_class_embeds=len(spec.classes) + 1 if spec.classes else None,
            resnet_time_scale_shift="default" if spec.norm == "add" else spec.norm,
            **(_place(spec.width) if spec.placed else {}),
        )
        self.unet = made

    def forward(self, view: View) -> Denoised:
        image_BCHW, time_B = self.seen(view), view.time_B
        if time_B is None:
            time_B = torch.zeros(len(image_BCHW), device=image_BCHW.device)
        if self.recompute and not self.unet.is_gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if isinstance(self.context, ClipContext):
            context_BLD, real_BL = self.context(view.tokens_BL), None
        else:
            context_BLD, real_BL = read_context(self, view)
        classes_B = told_classes(view, self.classes)
        place_B6 = told_place(view, self.factor) if self.placed else None
        added = told_beside(context_BLD, real_BL, place_B6)
        asked = Asked(image_BCHW, time_B, context_BLD, real_BL, classes_B, added)
        return Denoised(view, self.say(asked, **(view.steer(asked) if view.steer else {})))

    def say(self, asked: Asked, **steer: Any) -> Tensor:
        """What is said of each cell, (B, C, h, w); `steer` as of `View`."""
        return self.unet(
            asked.x_BChw,
            asked.time_B,
            encoder_hidden_states=asked.context_BLD,
            encoder_attention_mask=asked.real_BL,
            class_labels=asked.classes_B,
            added_cond_kwargs=asked.added,
            **steer,
        ).sample
