"""`diptych verify` of what peft and diffusers write themselves, whole and spoilt."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.finetune import factors
from diptych.finetune.verify import verify

State = dict[str, Tensor]
Shapes = Mapping[str, Mapping[str, Any]]
MORE: dict[str, Any] = {"r": 2, "target_modules": ["to_q", "conv"]}
WRITTEN: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(**MORE),
    "dora": lambda: LoraConfig(use_dora=True, **MORE),
    "all biases": lambda: LoraConfig(bias="all", **MORE),
    "biases beside": lambda: LoraConfig(bias="lora_only", **MORE),
    "biases of its own": lambda: LoraConfig(lora_bias=True, **MORE),
    "loha": lambda: LoHaConfig(use_effective_conv2d=True, **MORE),
    "loha, flat kernels": lambda: LoHaConfig(**MORE),
    "lokr": lambda: LoKrConfig(decompose_both=True, use_effective_conv2d=True, **MORE),
    "lokr, flat kernels": lambda: LoKrConfig(decompose_factor=2, **MORE),
    "layers": lambda: LoraConfig(layers_to_transform=[1], layers_pattern="layers", **MORE),
    "ia3": lambda: IA3Config(target_modules=["to_q"], feedforward_modules=[]),
    "adalora": lambda: AdaLoraConfig(target_modules=["to_q"], total_step=9),
}


class Block(nn.Module):
    """A projection, a convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.conv = nn.Linear(8, 16), nn.Conv2d(8, 16, 3)
        self.norm = nn.LayerNorm(8)


class Blocks(nn.Module):
    """Two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])


def base() -> Shapes:
    named = Blocks().state_dict().items()
    shapes = {n.removesuffix(".weight"): tuple(v.shape) for n, v in named if n.endswith("weight")}
    return {"unet": {"digest": "0", "shapes": shapes}}


def written(kind: str, out: Path) -> Path:
    model: Any = get_peft_model(Blocks(), WRITTEN[kind]())
    model.save_pretrained(out)
    return out


@pytest.mark.filterwarnings("ignore:.*have invalid shape")  # so peft says of its own biases
@pytest.mark.parametrize("kind", WRITTEN)
def test_what_peft_writes_is_taken(kind: str, tmp_path: Path) -> None:
    found = verify(written(kind, tmp_path / "theirs"), base())
    assert found.wrong == [] and found.layout == "peft" and found.tensors
    other = [note for note in found.notes if "not looked into" in note]
    assert bool(other) == (kind in ("ia3", "adalora"))


def without(end: str) -> Callable[[State], State]:
    return lambda state: {n: v for n, v in state.items() if not n.endswith(end)}


def changed(end: str, how: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {n: how(v) if n.endswith(end) else v for n, v in state.items()}


SPOILT: dict[str, tuple[str, Callable[[State], State], str]] = {
    "a half of LoHa": ("loha", without("1.to_q.hada_w2_b"), "to_q has no hada_w2_b"),
    "rank of LoHa": (
        "loha, flat kernels",
        changed("1.to_q.hada_w1_b", lambda v: v[:1]),
        "hada_w1_b has rank 1 and hada_w1_a rank 2",
    ),
    "half as wide": (
        "loha", changed("1.to_q.hada_w1_b", lambda v: v[:, :4]), "two products have several",
    ),
    "core of LoHa": (
        "loha", changed("1.conv.hada_t1", lambda v: v[:, :, :1, :1]), "two products have several",
    ),
    "a half of LoKr": ("lokr", without("1.to_q.lokr_w1"), "to_q has no lokr_w1"),
    "shape of LoKr": (
        "lokr, flat kernels",
        changed("1.to_q.lokr_w1", lambda v: torch.cat([v, v])),
        "to_q is for a weight of (32, 8), the base's is (16, 8)",
    ),
    "lengths of DoRA": (
        "dora", without("1.to_q.lora_magnitude_vector"), "has no lora_magnitude_vector",
    ),
    "fewer lengths": (
        "dora",
        changed("1.to_q.lora_magnitude_vector", lambda v: v[:3]),
        "has 3 numbers, the base's weight 16 rows",
    ),
    "a kernel of one": (
        "lora",
        changed("1.conv.lora_A.weight", lambda v: v[..., :1, :1]),
        "conv is for a weight of (16, 8), the base's is (16, 72)",
    ),
    "a number": (
        "lora", changed("1.to_q.lora_A.weight", lambda v: v.sum()), "are no two matrices",
    ),
    "a module less": (
        "lora", lambda state: {n: v for n, v in state.items() if ".1.to_q." not in n},
        "layers.1.to_q has no matrices, and its config's target_modules name it (1 such)",
    ),
    "a key renamed": (
        "lora", lambda state: {n.replace("1.to_q", "1.to_p"): v for n, v in state.items()},
        "layers.1.to_p is none of its config's target_modules (1 such)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_peft_wrote_and_was_spoilt_is_said(case: str, tmp_path: Path) -> None:
    kind, how, said = SPOILT[case]
    file = written(kind, tmp_path) / "adapter_model.safetensors"
    state = {name: value.contiguous() for name, value in how(load_file(file)).items()}
    save_file(state, file)
    assert said in " ".join(verify(tmp_path, base()).wrong)


SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another method": ("lora", {"peft_type": "LOHA"}, "peft_type is 'LOHA', which makes no such"),
    "LoRA of LoKr": ("lokr", {"peft_type": "LORA"}, "peft_type is 'LORA', which makes no such"),
    "no factors": ("lora", {"peft_type": "IA3"}, "peft_type is 'IA3', which makes no such"),
    "unheard of": ("lora", {"peft_type": "LORAX"}, "peft_type is 'LORAX', which makes no such"),
    "no method": ("lora", {"peft_type": None}, "adapter_config.json has no peft_type"),
    "no rank": ("lora", {"r": None}, "adapter_config.json has no r: peft takes 8"),
    "no alpha": ("loha", {"alpha": None}, "adapter_config.json has no alpha: peft takes 8"),
    "alpha in words": ("lora", {"lora_alpha": "16"}, "lora_alpha is '16', which is no number"),
    "half a rank": ("lora", {"r": 2.5}, "r is 2.5, which is no whole number above 0"),
    "rank 0": ("lokr", {"r": 0}, "r is 0, which is no whole number above 0"),
    "alphas": ("lora", {"alpha_pattern": {"to_q": "x"}}, "alpha_pattern of 'to_q' is 'x', which"),
    "ranks": ("lora", {"rank_pattern": ["to_q"]}, "rank_pattern is ['to_q'], which is no table"),
    "a pattern": ("lora", {"rank_pattern": {"(": 4}}, "rank_pattern of '(' is no regular"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_contradict_the_tensors_are_said(case: str, tmp_path: Path) -> None:
    kind, change, said = SETTINGS[case]
    file = written(kind, tmp_path) / "adapter_config.json"
    values = json.loads(file.read_text()) | change
    file.write_text(json.dumps({n: v for n, v in values.items() if v is not None}))
    assert said in " ".join(verify(tmp_path).wrong)


def test_alphas_of_diffusers_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    state = {f"unet.to_q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    told = {"unet.r": 2, "unet.lora_alpha": "16"}
    file = tmp_path / "theirs.safetensors"
    save_file(state, file, metadata={"lora_adapter_metadata": json.dumps(told)})
    (wrong,) = verify(file).wrong
    assert wrong == "lora_adapter_metadata unet: lora_alpha is '16', which is no number."


def test_a_matrix_beside_a_norm_and_damaged_metadata_are_said(tmp_path: Path) -> None:
    file, head = tmp_path / "theirs.safetensors", "lora_unet_layers_0_norm"
    state = {f"{head}.lora_down.weight": torch.ones(2, 8), f"{head}.alpha": torch.tensor(2.0)}
    state[f"{head}.lora_up.weight"] = torch.ones(8, 2)
    save_file(state, file)
    assert "weight of (8, 8), the base's is (8, 1)" in " ".join(verify(file, base()).wrong)
    for key in ("diptych", "lora_adapter_metadata"):
        save_file(state, file, metadata={key: "[]"})
        (wrong,) = verify(file, base()).wrong
        assert f"metadata {key!r} is damaged: no JSON object" in wrong


def test_one_fault_of_many_modules_is_said_a_few_times(tmp_path: Path) -> None:
    heads = [f"lora_unet_{number}" for number in range(40)]
    save_file(
        {f"{head}.lora_up.weight": torch.ones(2, 2) for head in heads}, tmp_path / "a.safetensors"
    )
    wrong = verify(tmp_path).wrong
    assert len(wrong) == 9 and wrong[-1] == "And 33 more such sentences."


def test_shapes_are_those_of_the_product() -> None:
    tucker = {"lora_down": (3, 8, 1, 1), "lora_mid": (3, 2, 3, 3), "lora_up": (16, 3, 1, 1)}
    assert [*factors.misfits(tucker)] == ["lora_down has rank 3, what stands before it 2."]
    tucker["lora_down"] = (2, 8, 1, 1)
    assert not [*factors.misfits(tucker)] and factors.weight(tucker) == (16, 72)
    assert factors.weight({"alpha": ()}) is None


def control(out: Path) -> Path:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    made: Any = ControlNetModel
    made(
        block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 8),
    ).save_pretrained(out)  # fmt: skip
    return out / "diffusion_pytorch_model.safetensors"


def test_a_model_of_diffusers_is_held_against_its_settings(tmp_path: Path) -> None:
    file = control(tmp_path)
    assert verify(tmp_path).wrong == [] == verify(file).wrong
    state = load_file(file)
    save_file({n.replace("conv_in", "conv_on", 1): v for n, v in state.items()}, file)
    wrong = " ".join(verify(tmp_path).wrong)
    assert "conv_in.bias is missing (4 in all)" in wrong
    assert "conv_on.bias is unexpected (4 in all)" in wrong
    save_file(
        {n: v[:, :3].contiguous() if n == "conv_in.weight" else v for n, v in state.items()}, file
    )
    (wrong,) = verify(tmp_path).wrong
    assert wrong.startswith("conv_in.weight has the shape (8, 3, 3, 3) (1 such)")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"block_out_channels": [8]}))
    (wrong,) = verify(tmp_path).wrong
    assert "config.json makes no ControlNetModel" in wrong


def test_attention_under_its_old_names_is_no_fault(tmp_path: Path) -> None:
    """As the autoencoder of Stable Diffusion 1.5 has them on the hub."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    made: Any = AutoencoderKL
    made(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, name in old.items():
        state = {n.replace(f".{new}.", f".{name}."): v for n, v in state.items()}
    save_file(state, file)
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert any(".query." in name for name in state) and verify(tmp_path).wrong == []
