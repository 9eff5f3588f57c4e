"""Names of the original layout, held against diffusers' own converter."""

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diptych.errors import ExportError
from diptych.finetune import original
from diptych.finetune.original import FIRST, UNET


def unet(**settings: Any) -> Any:
    return UNet2DConditionModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 2,
            "cross_attention_dim": 8,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **settings,
        }
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers_per_block": 1},
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ],
    ids=["sd", "one layer", "ours"],
)
def test_diffusers_reads_our_unet(settings: dict[str, Any]) -> None:
    model = unet(**settings)
    state, naming = model.state_dict(), original.unet_naming(model.config)
    file = original.to_original(state, naming, UNET)
    assert len(file) == len(state)
    read = convert_ldm_unet_checkpoint(dict(file), dict(model.config))
    assert set(read) == set(state)
    assert all(torch.equal(read[name], value) for name, value in state.items())
    back = original.from_original(file, state, naming, UNET)
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel], ids=["kl", "vq"])
def test_diffusers_reads_our_autoencoder(kind: Any) -> None:
    model = kind(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    state, naming = model.state_dict(), original.autoencoder_naming(2)
    file = original.to_original(state, naming, FIRST)
    assert file["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (16, 16, 1, 1)
    read = convert_ldm_vae_checkpoint(dict(file), dict(model.config))
    lost = set(state) - set(read)
    assert lost <= {"quantize.embedding.weight"}  # diffusers' converter is of KL alone
    assert all(torch.equal(read[name], state[name]) for name in set(state) - lost)
    back = original.from_original(file, state, naming, FIRST)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_a_file_of_another_model_is_told_from_ours() -> None:
    model = unet()
    naming = original.unet_naming(model.config)
    file = original.to_original(model.state_dict(), naming, UNET)
    with pytest.raises(ExportError, match=r"input_blocks\.0\.0\.weight.*\(8, 4, 3, 3\)"):
        original.from_original(file, unet(in_channels=3).state_dict(), naming, UNET)
    del file["model.diffusion_model.out.2.bias"]
    with pytest.raises(ExportError, match=r"no 'model\.diffusion_model\.out\.2\.bias'"):
        original.from_original(file, model.state_dict(), naming, UNET)


def test_what_the_layout_has_no_name_for_is_refused() -> None:
    odd = unet(mid_block_type="UNetMidBlock2D", addition_embed_type="text")
    with pytest.raises(ExportError, match="no name for 'add_embedding"):
        original.to_original(odd.state_dict(), original.unet_naming(odd.config), UNET)
