"""A diffusion transformer (Peebles and Xie 2023) with cross-attention to text (PixArt, 2023).

B rows, C channels, H x W cells of a latent (or pixels), P patches, L tokens, D width.
"""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..denoiser import (
    Denoiser,
    mean_state,
    read_context,
    told_beside,
    told_classes,
    told_place,
)
from ..diffusion.context import Attention, TextContext, waves
from ..layers import run_layer
from ..objective import Asked, Denoised, View, Words

_PLACE = 128
"""Waves of each number that says where a row was cut from."""


class Dit(Denoiser):
    """Patches through blocks that time steers (adaLN-zero) and that attend to the text."""

    kind: ClassVar[str] = "dit"
    entrance: ClassVar[str] = "enter.weight"
    patch: int = Field(default=2, ge=1)
    """Cells a side of a patch."""
    depth: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)

    @property
    def cell(self) -> int:
        return self.patch

    @model_validator(mode="after")
    def _fits(self) -> "Dit":
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads} and of 4")
        return self

    def build(self, words: Words) -> "DiffusionTransformer":
        return DiffusionTransformer(self, words.size)


class DiffusionTransformer(nn.Module):
    """view -> Denoised. Images of any size whose sides are multiples of the patch."""

    def __init__(self, spec: Dit, vocabulary: int) -> None:
        super().__init__()
        width, self.patch = spec.width, spec.patch
        values, said = (n * spec.patch**2 for n in (spec.channels_in, spec.first_stage.channels))
        if spec.texts:
            self.context: nn.Module = spec.frozen_context()
        else:
            self.words = nn.Embedding(vocabulary, width)
            self.context = TextContext(width, spec.tokens, spec.text_depth, spec.heads)
            nn.init.normal_(self.words.weight, std=0.02)
        self.enter = nn.Linear(values, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes, self.recompute, self.seen = len(spec.classes), False, spec.seen
        self.factor = spec.first_stage.factor
        self.place = nn.Linear(6 * _PLACE, width) if spec.placed else None
        self.kinds = nn.Embedding(self.classes + 1, width) if spec.classes else None
        self.blocks = nn.ModuleList(Block(width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.steer = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, said)
        for layer in (self.steer, self.leave):  # says 0 at first
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, view: View) -> Denoised:
        image_BCHW, time_B = self.seen(view), view.time_B
        if time_B is None:
            time_B = torch.zeros(len(image_BCHW), device=image_BCHW.device)
        context_BLD, real_BL = read_context(self, view)
        classes_B = told_classes(view, self.classes)
        place_B6 = None if self.place is None else told_place(view, self.factor)
        added = told_beside(context_BLD, real_BL, place_B6)
        asked = Asked(image_BCHW, time_B, context_BLD, real_BL, classes_B, added)
        return Denoised(view, self.say(asked))

    def say(self, asked: Asked) -> Tensor:
        """What is said of each cell, (B, C, H, W)."""
        image_BCHW, context_BLD, real_BL = asked.x_BChw, asked.context_BLD, asked.real_BL
        rows, columns = (side // self.patch for side in image_BCHW.shape[2:])
        values_BPV = F.unfold(image_BCHW, self.patch, stride=self.patch).transpose(1, 2)
        x_BPD = self.enter(values_BPV) + self._places(rows, columns, values_BPV)
        steer_BD = self.time(waves(asked.time_B, x_BPD.shape[2]).to(x_BPD.dtype))
        steer_BD = steer_BD + mean_state(context_BLD, real_BL)
        if self.place is not None and asked.added is not None:
            numbers_B6 = asked.added["time_ids"]
            waves_BV = waves(numbers_B6.flatten(), _PLACE).view(-1, 6 * _PLACE)
            steer_BD = steer_BD + self.place(waves_BV.to(x_BPD.dtype))
        if self.kinds is not None:
            steer_BD = steer_BD + self.kinds(asked.classes_B)
        for block in self.blocks:
            steers_BD = F.silu(steer_BD)
            x_BPD = run_layer(block, self.recompute, x_BPD, steers_BD, context_BLD, real_BL)
        shift, scale = self.steer(F.silu(steer_BD))[:, None].chunk(2, dim=2)
        said_BPV = self.leave(self.norm(x_BPD) * (1 + scale) + shift)
        said_BVP = said_BPV.transpose(1, 2)
        return F.fold(said_BVP, image_BCHW.shape[2:], self.patch, stride=self.patch)

    def _places(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """(P, D): waves of row and column, so that other sizes have their places too."""
        half = self.enter.out_features // 2
        y = torch.arange(rows, device=like.device).repeat_interleave(columns)
        x = torch.arange(columns, device=like.device).repeat(rows)
        return torch.cat([waves(y, half), waves(x, half)], 1).to(like.dtype)


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; time gives shift, scale and gate, 0 at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attend, self.norm_text, self.norm_think = (
            nn.LayerNorm(width, elementwise_affine=False) for _ in range(3)
        )
        self.attend, self.read = Attention(width, heads), Attention(width, heads)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.steer = nn.Linear(width, 6 * width)
        for layer in (self.steer, self.read.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x_BPD: Tensor, steer_BD: Tensor, context_BLD: Tensor, real_BL: Tensor
    ) -> Tensor:
        parts = self.steer(steer_BD)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_think, scale_think, gate_think = parts
        normed = self.norm_attend(x_BPD) * (1 + scale) + shift
        x_BPD = x_BPD + gate * self.attend(normed, normed)
        x_BPD = x_BPD + self.read(self.norm_text(x_BPD), context_BLD, real_BL)
        normed = self.norm_think(x_BPD) * (1 + scale_think) + shift_think
        return x_BPD + gate_think * self.think(normed)
