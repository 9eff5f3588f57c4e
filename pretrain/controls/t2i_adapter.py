"""T2I-Adapter (Mou et al., AAAI 2024): a small network of its own, seen once and not at each step.

diffusers' `T2IAdapter`: the hint is unshuffled to the size of latents, and blocks at falling sizes
give what is added to each level of the U-Net on its way down. It sees neither the text nor how
noised the image is, so it composes with others and moves to other tunings of its base. B rows,
C channels, H x W pixels.
"""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from ...errors import RecipeError
from ..control import Control, Residuals
from ..objective import Asked


class T2IAdapter(Control):
    """Features of a hint at every level of the U-Net, four in Stable Diffusion's."""

    kind: ClassVar[str] = "t2i_adapter"
    timeless: ClassVar[bool] = True
    blocks: int = Field(default=2, ge=1)
    """Residual blocks of each level."""

    def build(self, unet: Any, factor: int) -> nn.Module:
        from diffusers.models.adapter import T2IAdapter as Adapter  # for seconds

        form, unshuffled = _form(unet)
        module: Any = Adapter(
            in_channels=self.channels,
            channels=list(unet.config.block_out_channels),
            num_res_blocks=self.blocks,
            downscale_factor=unshuffled * factor,
            adapter_type=form,
        )
        return module

    def look(self, module: Any, hint_BCHW: Tensor, asked: Asked) -> Residuals:
        return Residuals(levels=module(hint_BCHW))


def _form(unet: Any) -> tuple[str, int]:
    """diffusers' type of adapter, and by how much it unshuffles latents, for such a U-Net.

    A level with attention takes its features before it halves the image, one without after.

    Raises:
        RecipeError: diffusers has none whose levels have these sizes.
    """
    attends = ["CrossAttn" in name for name in unet.config.down_block_types]
    last = len(attends) - 1
    halved = tuple(n if attends[n] or n == last else n + 1 for n in range(len(attends)))
    if halved == tuple(range(len(attends))):
        return "full_adapter", 1
    if halved == (1, 1, 2, 2)[: len(attends)]:
        return "full_adapter_xl", 2
    raise RecipeError(
        f"no T2I-Adapter of diffusers has levels of the sizes 1/{2 ** halved[0]} ... of a U-Net "
        f"whose levels attend so: {attends}. Pretrain the base with model.attends of all but the "
        "last level, or train a controlnet."
    )
