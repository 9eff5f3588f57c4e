"""Names of tensors in the original layout of latent diffusion and Stable Diffusion 1, and back.

CompVis' checkpoints, and with them most programs that draw, number the blocks of a U-Net through
(`input_blocks.4.1`); diffusers names level and place (`down_blocks.1.attentions.0`). For any depth
and any number of levels; what CompVis has no name for is refused.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError

State = Mapping[str, Tensor]
Naming = Callable[[str], str]

UNET, FIRST, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
"""Prefixes of the denoiser, the autoencoder and CLIP's text encoder in the file."""

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding": "label_emb",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_naming(config: Mapping[str, Any]) -> Naming:
    """diffusers' name of a tensor of `UNet2DConditionModel` -> the original's, without prefix.

    Args:
        config: of the model; `layers_per_block` must be one number.

    Raises:
        ExportError: from the naming, for a tensor that the original layout has no name for.
    """
    layers, attended = config["layers_per_block"], config["up_block_types"]
    if not isinstance(layers, int):
        raise ExportError(
            f"layers_per_block {layers} differs by level; the original layout has one number."
        )
    each = layers + 1

    def name(theirs: str) -> str:
        module, _, part = theirs.rpartition(".")
        if module in _ENDS:
            return f"{_ENDS[module]}.{part}"
        place = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", theirs)
        if place is None:
            return _middle(theirs)
        side, level, what, number, rest = place[1], int(place[2]), place[3], int(place[4]), place[5]
        block = "input_blocks" if side == "down" else "output_blocks"
        index = level * each + number + (side == "down")
        if what == "resnets":
            return f"{block}.{index}.0.{_inside(rest)}"
        if what == "attentions":
            return f"{block}.{index}.1.{rest}"
        if what == "downsamplers":
            return f"input_blocks.{(level + 1) * each}.0.op.{part}"
        if what == "upsamplers":
            second = 2 if "Attn" in attended[level] else 1
            return f"output_blocks.{(level + 1) * each - 1}.{second}.conv.{part}"
        raise _nameless(theirs)

    return name


def autoencoder_naming(levels: int) -> Naming:
    """diffusers' name of a tensor of `AutoencoderKL` or `VQModel` -> the original's, no prefix."""

    def name(theirs: str) -> str:
        found = theirs.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if place := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(.+)", found):
            return f"{place[1]}.mid.block_{int(place[2]) + 1}.{place[3]}"
        if place := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", found):
            if place[2] not in _ATTENTION:
                raise _nameless(theirs)
            return f"{place[1]}.mid.attn_1.{_ATTENTION[place[2]]}.{place[3]}"
        place = re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", found)
        if place is None:
            return found  # conv_in, conv_out, norm_out, quant_conv, quantize: the same there
        side, level, what, number, rest = place[2], int(place[3]), place[4], place[5], place[6]
        above = f"{place[1]}.{side}.{level if side == 'down' else levels - 1 - level}"
        if what == "resnets":
            return f"{above}.block.{number}.{rest}"
        if what in ("downsamplers", "upsamplers"):
            return f"{above}.{what.removesuffix('rs')}.{rest}"
        raise _nameless(theirs)

    return name


def text_naming(theirs: str) -> str:
    """transformers' name of a tensor of `CLIPTextModel` -> the original's, without prefix."""
    return theirs if theirs.startswith("text_model.") else f"text_model.{theirs}"


def to_original(state: State, naming: Naming, prefix: str) -> dict[str, Tensor]:
    """A part's tensors by the original's names; an autoencoder's attention becomes convolutions."""
    found: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name = prefix + naming(theirs)
        if ".attn_1." in name and value.ndim == 2:
            value = value[:, :, None, None]
        found[name] = value.contiguous()
    return found


def from_original(file: State, wanted: State, naming: Naming, prefix: str) -> dict[str, Tensor]:
    """The tensors of `wanted`, a part of diffusers, out of a file in the original layout.

    Raises:
        ExportError: the file lacks one, or one has another shape.
    """
    found: dict[str, Tensor] = {}
    for theirs, like in wanted.items():
        name = prefix + naming(theirs)
        if name not in file:
            raise ExportError(
                f"The file has no {name!r} ({theirs} of diffusers): it is of another model, or "
                "of other sizes. Set the model's sizes to those of the file."
            )
        value = file[name]
        if value.ndim == like.ndim + 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        if value.shape != like.shape:
            raise ExportError(
                f"{name!r} is {tuple(value.shape)} in the file and {tuple(like.shape)} in the "
                "recipe's model. Set the model's sizes to those of the file."
            )
        found[theirs] = value.to(torch.float32)
    return found


def _middle(theirs: str) -> str:
    if place := re.fullmatch(r"mid_block\.resnets\.([01])\.(.+)", theirs):
        return f"middle_block.{2 * int(place[1])}.{_inside(place[2])}"
    if place := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", theirs):
        return f"middle_block.1.{place[1]}"
    raise _nameless(theirs)


def _inside(rest: str) -> str:
    module, _, part = rest.rpartition(".")
    if module not in _RESNET:
        raise _nameless(rest)
    return f"{_RESNET[module]}.{part}"


def _nameless(theirs: str) -> ExportError:
    return ExportError(
        f"The original layout has no name for {theirs!r}. Export to diffusers instead, or train "
        "with a U-Net of Stable Diffusion's kinds of blocks."
    )
