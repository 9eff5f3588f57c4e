"""ControlNet (Zhang, Rao and Agrawala, ICCV 2023): a copy of the encoder behind zero convolutions.

diffusers' `ControlNetModel`. A zero convolution says nothing at first, yet it learns at once: its
gradient is its input, which is not zero. B rows, C channels, H x W pixels.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import RecipeError
from ..control import Control, Residuals
from ..objective import Asked

_EMBEDDING = (16, 32, 96, 256)
"""Channels of the convolutions that bring the hint to the size of latents, two a halving."""


class ControlNet(Control):
    """A trained copy of the U-Net's way down, whose every output goes through a convolution.

    It sees the states of all L tokens, padding too: diffusers' module takes no mask of texts.
    """

    kind: ClassVar[str] = "controlnet"
    hint_channels: ClassVar[int | None] = 3  # as diffusers' pipelines show it
    zero: bool = True
    """Whether those convolutions begin at zero; otherwise as torch draws them, to compare."""
    copy_base: bool = True
    """Whether the copy begins with the base's weights; otherwise as drawn, to compare."""

    def build(self, unet: Any, factor: int) -> nn.Module:
        from diffusers.models.controlnets.controlnet import ControlNetModel  # for seconds

        halvings = factor.bit_length() - 1
        if 2**halvings != factor or halvings >= len(_EMBEDDING):
            raise RecipeError(
                f"a ControlNet brings hints to 1, 1/2, 1/4 or 1/8 of their size, not 1/{factor}. "
                "Name another first stage."
            )
        module: Any = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=_EMBEDDING[: halvings + 1],
            load_weights_from_unet=False,
            conditioning_channels=self.channels,
        )
        if not self.zero:
            for conv in zero_convolutions(module):
                conv.reset_parameters()
        return module

    def begin(self, module: Any, unet: Any) -> None:
        if self.copy_base:
            for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
                getattr(module, name).load_state_dict(getattr(unet, name).state_dict())
            for name in ("class_embedding", "add_embedding"):
                if getattr(module, name, None) is not None:
                    getattr(module, name).load_state_dict(getattr(unet, name).state_dict())

    def look(self, module: Any, hint_BCHW: Tensor, asked: Asked) -> Residuals:
        down, middle = module(
            asked.x_BChw,
            asked.time_B,
            encoder_hidden_states=asked.context_BLD,
            controlnet_cond=hint_BCHW,
            class_labels=asked.classes_B,
            added_cond_kwargs=asked.added,
            return_dict=False,
        )
        return Residuals(list(down), middle)


def zero_convolutions(module: Any) -> list[nn.Conv2d]:
    """Those of each skip, of the middle, and of the hint, in the order of diffusers."""
    return [
        *module.controlnet_down_blocks,
        module.controlnet_mid_block,
        module.controlnet_cond_embedding.conv_out,
    ]
