"""What the shapes of a single file in Stable Diffusion 1's layout tell of its settings.

Heads cannot be read of shapes: 8 in the U-Net and 64 channels each in CLIP, as in Stable Diffusion.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from . import original

State = Mapping[str, Tensor]
_HEADS = 8
_CLIP_HEAD = 64
_GROUPS = 32
_SCALE = 0.18215


def told(part: str, file: State, url: str) -> dict[str, Any]:
    """Settings of `unet`, `vae` or `text_encoder`, as diffusers' and transformers' config.json.

    Raises:
        CheckpointError: the file has no such part, or one of another family.
    """
    read = {"unet": _unet, "vae": _vae, "text_encoder": _text}[part]
    try:
        return read(file)
    except KeyError as err:
        raise CheckpointError(
            f"{url} has no {err.args[0]!r}: it is no checkpoint in Stable Diffusion 1's layout. "
            "Those of diffusers are folders; name the folder."
        ) from err


def _unet(file: State) -> dict[str, Any]:
    prefix = original.UNET
    numbers = _numbers(file, rf"{re.escape(prefix)}input_blocks\.(\d+)\.")
    downs = [n for n in numbers if f"{prefix}input_blocks.{n}.0.op.weight" in file]
    layers = (downs[0] if downs else len(numbers)) - 1
    firsts = [1, *(n + 1 for n in downs)]
    attends = [f"{prefix}input_blocks.{n}.1.norm.weight" in file for n in firsts]
    first_in = file[f"{prefix}input_blocks.0.0.weight"]
    reads = next(
        (v.shape[1] for n, v in file.items() if n.startswith(prefix) and "attn2.to_k" in n), None
    )
    if reads is None:
        raise KeyError(f"{prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    down = [("CrossAttnDownBlock2D" if a else "DownBlock2D") for a in attends]
    up = [("CrossAttnUpBlock2D" if a else "UpBlock2D") for a in reversed(attends)]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": first_in.shape[1],
        "out_channels": file[f"{prefix}out.2.weight"].shape[0],
        "block_out_channels": [
            file[f"{prefix}input_blocks.{n}.0.out_layers.3.weight"].shape[0] for n in firsts
        ],
        "layers_per_block": layers,
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": reads,
        "attention_head_dim": _HEADS,
        "norm_num_groups": _GROUPS,
    }


def _vae(file: State) -> dict[str, Any]:
    prefix = f"{original.FIRST}encoder."
    levels = _numbers(file, rf"{re.escape(prefix)}down\.(\d+)\.")
    blocks = _numbers(file, rf"{re.escape(prefix)}down\.0\.block\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": file[f"{prefix}conv_in.weight"].shape[1],
        "out_channels": file[f"{original.FIRST}decoder.conv_out.weight"].shape[0],
        "block_out_channels": [
            file[f"{prefix}down.{level}.block.0.conv1.weight"].shape[0] for level in levels
        ],
        "layers_per_block": len(blocks),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "latent_channels": file[f"{original.FIRST}post_quant_conv.weight"].shape[0],
        "norm_num_groups": _GROUPS,
        "scaling_factor": _SCALE,
        "sample_size": 512,
    }


def _text(file: State) -> dict[str, Any]:
    prefix = f"{original.TEXT}text_model."
    words = file[f"{prefix}embeddings.token_embedding.weight"]
    layers = _numbers(file, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.")
    inner = file[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape[0]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, words.shape[1] // _CLIP_HEAD),
        "max_position_embeddings": file[f"{prefix}embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _numbers(file: State, pattern: str) -> list[int]:
    """Numbers that the names hold at a place, in order.

    Raises:
        KeyError: no name is like that.
    """
    found = {int(match[1]) for name in file if (match := re.match(pattern, name))}
    if not found:
        raise KeyError(pattern.replace("\\", ""))
    return sorted(found)
