"""A classifier of noised images (Dhariwal and Nichol 2021): the way down of a U-Net, and a mean.

B rows, C channels, H x W cells of a latent (or pixels), D width, K classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from ...errors import RecipeError
from ..diffusion.context import waves
from ..layers import run_layer
from ..objective import Classified, Sizes, View, Words
from ..staged import Staged

_BLOCKS = {True: "AttnDownBlock2D", False: "DownBlock2D"}


class NoisyClassifier(Staged):
    """Residual blocks at falling sizes, steered by the time; says what class a noised image is of.

    A sample's class is its `.cls` member, or its text where that is the name of a class.
    """

    kind: ClassVar[str] = "noisy_classifier"
    gives: ClassVar[type] = Classified
    channels: tuple[int, ...] = Field(default=(64, 128), min_length=1)
    """Of each level; each next level has half the height and width."""
    layers: int = Field(default=1, ge=1)
    """Residual blocks a level."""
    heads: int = Field(default=4, ge=1)
    groups: int = Field(default=16, ge=1)
    """Of group norm; must divide all channels."""
    attends: tuple[bool, ...] | None = None
    """Which levels attend; by default all but the first."""

    @property
    def cell(self) -> int:
        return 2 ** (len(self.channels) - 1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image"})

    @property
    def levels(self) -> tuple[bool, ...]:
        """Whether each level attends."""
        return self.attends or (False, *(True,) * (len(self.channels) - 1))

    @model_validator(mode="after")
    def _fits(self) -> "NoisyClassifier":
        if len(self.classes) < 2:
            raise ValueError(f"classes {list(self.classes)}: name two or more to tell apart")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} name one twice")
        if len(self.levels) != len(self.channels):
            raise ValueError(f"attends {self.levels} is not one for each of {self.channels}")
        odd = [n for n in self.channels if n % self.groups or n % self.heads]
        if odd:
            raise ValueError(
                f"channels {odd[0]} is not a multiple of groups {self.groups} and of heads "
                f"{self.heads}"
            )
        return self

    def class_of(self, fields: Mapping[str, Any], key: str, text: str = "") -> int:
        number = super().class_of(fields, key, text)
        if number == len(self.classes):
            raise RecipeError(
                f"{key} has no class: neither a .cls member nor a text that is one of "
                f"model.classes, such as {self.classes[0]!r}; its text is {text!r}. Set data.text "
                "to the field that names it."
            )
        return number

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.channels[-1], vocabulary=words.size)

    def build(self, words: Words) -> "HalfUnet":
        return HalfUnet(self)


class HalfUnet(nn.Module):
    """view -> Classified. Images of any size that can be halved at every level."""

    def __init__(self, spec: NoisyClassifier) -> None:
        from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block

        super().__init__()
        self.recompute, self.wave = False, spec.channels[0]
        width, last = 4 * spec.channels[0], spec.channels[-1]
        self.time = nn.Sequential(nn.Linear(self.wave, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Conv2d(spec.first_stage.channels, spec.channels[0], 3, padding=1)
        how: Any = {
            "temb_channels": width,
            "resnet_eps": 1e-5,
            "resnet_act_fn": "silu",
            "resnet_groups": spec.groups,
            "resnet_time_scale_shift": "scale_shift",  # adaptive group norm
        }
        made: Any = get_down_block
        before = (spec.channels[0], *spec.channels)
        self.down = nn.ModuleList(
            made(
                _BLOCKS[attends],
                num_layers=spec.layers,
                in_channels=before[level],
                out_channels=spec.channels[level],
                add_downsample=level + 1 < len(spec.channels),
                downsample_padding=1,
                attention_head_dim=spec.channels[level] // spec.heads,
                downsample_type="conv" if level + 1 < len(spec.channels) else None,
                **how,
            )
            for level, attends in enumerate(spec.levels)
        )
        middle: Any = UNetMidBlock2D
        self.middle = middle(in_channels=last, attention_head_dim=last // spec.heads, **how)
        self.norm = nn.GroupNorm(spec.groups, last)
        self.leave = nn.Linear(last, len(spec.classes))

    def forward(self, view: View) -> Classified:
        image_BCHW, time_B = view.image_BCHW, view.time_B
        if time_B is None:
            time_B = torch.zeros(len(image_BCHW), device=image_BCHW.device)
        steer_BD = self.time(waves(time_B, self.wave).to(image_BCHW.dtype))
        x_BCHW = self.enter(image_BCHW)
        for block in self.down:
            x_BCHW, _ = run_layer(block, self.recompute, x_BCHW, steer_BD)
        x_BCHW = run_layer(self.middle, self.recompute, x_BCHW, steer_BD)
        pooled_BC = F.silu(self.norm(x_BCHW)).mean((2, 3))
        return Classified(view, self.leave(pooled_BC))
