"""Exports of denoisers: plain diffusers and onnxruntime, in a clean process, compute the same."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.config import plain
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import ExportError
from diptych.finetune import pipeline, ship
from diptych.finetune.clean_pipeline import main as check
from diptych.finetune.export import denoiser_onnx, pipe, single_file
from diptych.finetune.parts import KINDS
from diptych.finetune.verify_base import Base, open_base, prove_again
from diptych.pretrain.denoiser import read_context
from diptych.pretrain.models import Unet
from diptych.pretrain.objective import View
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
UNET = {"kind": "unet", "channels": [16, 32], "groups": 8, "heads": 2, "width": 16, "tokens": 12}
UNET |= {"image_size": 16, "text": "clip"}
FACTS = {"steps": 3}
_OF_BOTH = ("heads", "width", "tokens", "image_size")


def levels(channels: list[int], kind: Any, groups: int = 4, **settings: Any) -> Any:
    """A small autoencoder of diffusers, of random weights."""
    count = len(channels)
    torch.manual_seed(1)
    return kind(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=channels,
        norm_num_groups=groups,
        **settings,
    )


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    home = tmp_path_factory.mktemp("vae")
    levels([8, 8], AutoencoderKL, latent_channels=4, scaling_factor=0.7).save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers.models.autoencoders.vq_model import VQModel

    home = tmp_path_factory.mktemp("vq")
    levels([8] * 4, VQModel, latent_channels=3, num_vq_embeddings=16).save_pretrained(home)
    return home


def made(words: Text, *settings: str, objective: str = "ddpm", **model: Any) -> tuple[Run, Task]:
    values = plain(vlp_easy())
    values["model"] = model if "kind" in model else {**UNET, **model}
    values["objectives"] = [{"kind": objective}]
    run = revise(values, list(settings), KINDS, source="small")
    torch.manual_seed(0)
    task = run.task(words)
    with torch.no_grad():  # a new U-Net's last convolution could be anything; text must matter
        for param in task.parameters():
            param.add_(0.05 * torch.randn_like(param))
    return run, task


def stage(vae: Path) -> dict[str, Any]:
    kind = {"kind": "autoencoder", "weights": str(vae), "latent_channels": 4, "downsampling": 2}
    return {"first_stage": kind}


def written(target: Any, out: Path, text: Text, run: Run, task: Task) -> dict[str, Any]:
    """The proof of an export, checked in this process: a clean one imports for ten seconds."""
    target.require(run)
    target.write(out, run, task, text, FACTS)
    pipeline.keep_probe(out, run, task, text)
    return again(out)


def again(out: Path) -> dict[str, Any]:
    try:
        check(out)
    except SystemExit as err:
        raise ExportError(str(err)) from err
    return json.loads((out / "proof.json").read_text())


def exported(
    target: Any, out: Path, text: Text, rows: Rows, run: Run, task: Task
) -> dict[str, Any]:
    target.require(run)
    target.write(out, run, task, text, FACTS)
    proof = target.prove(out, run, task, text, rows(2))
    assert proof["process"] != os.getpid()
    assert proof == json.loads((out / "proof.json").read_text())
    return proof


def test_stable_diffusion_draws_what_was_trained(
    tmp_path: Path, text: Text, rows: Rows, vae: Path
) -> None:
    """v prediction and zero terminal SNR: what a wrong scheduler config would get wrong."""
    out = tmp_path / "out"
    settings = ["objectives.ddpm.predict=v", "objectives.ddpm.schedule.zero_terminal_snr=true"]
    run, task = made(text, *settings, **stage(vae))
    proof = exported(pipe, out, text, rows, run, task)
    assert proof["loader"] == "diffusers.StableDiffusionPipeline"
    assert proof["max_difference"]["latents"] <= pipeline.TOLERANCE
    said = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert (said["prediction_type"], said["timestep_spacing"]) == ("v_prediction", "trailing")
    assert json.loads((out / "vae" / "config.json").read_text())["scaling_factor"] == 0.7
    assert json.loads((out / "unet" / "config.json").read_text())["sample_size"] == 8
    base = Base("nowhere", {})  # a whole pipeline stands on none: it is drawn again
    again_there = prove_again(out, base)
    assert again_there and again_there["max_difference"] == proof["max_difference"]
    (out / "proof" / "probe.json").rename(out / "probe.json")
    (out / "proof" / "probe.json").write_text("{}")
    assert prove_again(out, base) is None
    (out / "probe.json").rename(out / "proof" / "probe.json")
    said["prediction_type"] = "epsilon"
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    with pytest.raises(ExportError, match="latents differ by"):
        again(out)


def test_a_shifted_first_stage_is_refused(tmp_path: Path, text: Text, vae: Path) -> None:
    """Stable Diffusion's pipelines decode latents / scaling_factor, whatever shift_factor says."""
    shutil.copytree(vae, tmp_path / "vae")
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shift_factor": 0.25}))
    run, task = made(text, **stage(tmp_path / "vae"))
    for target in (pipe, single_file):
        with pytest.raises(ExportError, match=r"shifts its latents by 0\.25"):
            target.write(tmp_path / target.NAME, run, task, text, FACTS)


def test_frozen_shards_of_a_variant_are_opened(tmp_path: Path, vae: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    kind: Any = AutoencoderKL
    whole = kind.from_pretrained(vae)
    whole.save_pretrained(tmp_path, variant="fp16", max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = revise(
        plain(vlp_easy()) | {"model": UNET | stage(tmp_path), "objectives": [{"kind": "ddpm"}]},
        [], KINDS, source="small",
    )  # fmt: skip
    assert isinstance(found.model, Unet)
    record = found.model.first_stage
    with record.folders() as folders:
        (opened,) = record.build(folders).modules
    for name, value in whole.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)


def test_a_base_of_diffusers_may_be_a_url(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"a.weight": torch.ones(2)}, tmp_path / "unet" / "model.safetensors")
    found = open_base(f"file://{tmp_path}")
    assert found.account() == open_base(str(tmp_path)).account()
    found.write(tmp_path / "copy")
    assert (tmp_path / "copy/unet/model.safetensors").exists()
    with pytest.raises(ExportError, match="neither a run nor a folder"):
        open_base(str(tmp_path / "nothing"))


def test_latent_diffusion_draws_what_was_trained(tmp_path: Path, vq: Path, text: Text) -> None:
    from diptych.data import tokens

    long = tokens.from_text(text.tokenizer.to_str(), 77)
    first = {"kind": "vq", "weights": str(vq), "latent_channels": 3, "downsampling": 8}
    run, task = made(long, tokens=77, first_stage=first, image_size=32)
    proof = written(pipe, tmp_path / "out", long, run, task)
    assert proof["loader"] == "diffusers.LDMTextToImagePipeline"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_flow_over_pixels_ends_at_its_latents(tmp_path: Path, text: Text) -> None:
    run, task = made(text, objective="flow")
    proof = written(pipe, tmp_path / "out", text, run, task)
    assert proof["scheduler"] == "DPMSolverMultistepScheduler"
    assert "vae=None" in (tmp_path / "out" / "README.md").read_text()


def test_one_file_draws_what_was_trained(tmp_path: Path, text: Text, rows: Rows, vae: Path) -> None:
    out = tmp_path / "out"
    run, task = made(text, **stage(vae))
    exported(single_file, out, text, rows, run, task)
    state = load_file(out / "model.safetensors")
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in state
    assert "first_stage_model.decoder.mid.attn_1.proj_out.weight" in state
    assert not list((out / "config").rglob("*.safetensors"))
    state["model.diffusion_model.out.2.bias"][0] += 1
    save_file(state, out / "model.safetensors")
    with pytest.raises(ExportError, match="latents differ by"):
        again(out)


def test_onnx_says_what_the_network_says(tmp_path: Path, text: Text, rows: Rows) -> None:
    run, task = made(text, text="blocks", classes=["cat"])
    proof = exported(denoiser_onnx, tmp_path / "out", text, rows, run, task)
    assert set(proof["max_difference"]) == {"1 rows", "2 rows", "5 rows", "64 rows"}
    assert max(proof["max_difference"].values()) < 1e-4
    assert [f.name for f in (tmp_path / "out").glob("*.onnx*")] == ["model.onnx"]
    alone = denoiser_onnx.Bare(*made(text, text="clip"))
    assert alone.names == ["sample", "timestep", "encoder_hidden_states"]


def test_merged_prefers_a_pipeline_to_onnx(text: Text) -> None:
    run, task = made(text)
    found: Any = SimpleNamespace(run=run, task=task, text=text)
    target, _, _ = ship._target(found, "merged")
    assert target.NAME == "diffusers"


def test_onnx_of_a_transformer_says_what_its_model_says_of_texts(
    tmp_path: Path, text: Text, rows: Rows
) -> None:
    from onnxruntime import InferenceSession

    kind = {"kind": "dit", "patch": 4, "depth": 1, "placed": True, "classes": ["cat", "dog"]}
    run, task = made(text, **{name: UNET[name] for name in _OF_BOTH}, **kind)
    exported(denoiser_onnx, tmp_path / "out", text, rows, run, task)
    batch, time_B = rows(7), torch.linspace(0, 1000, 7)
    classes_B, place_B6 = torch.arange(7) % 3, 16 * torch.rand(7, 6)
    view = View(
        batch=replace(batch, placed_B6=place_B6),
        image_BCHW=torch.randn(7, 3, 16, 16),
        tokens_BL=batch.tokens_BL,
        real_BL=batch.real_BL,
        hidden_BN=torch.zeros(7, 0),
        matched_B=torch.ones(7, dtype=torch.bool),
        classes_B=classes_B,
        time_B=time_B,
    )
    with torch.no_grad():
        said_BCHW = task.model.eval()(view).said_BCHW
        context_BLD, real_BL = read_context(task.model, view)
    given = {"sample": view.image_BCHW, "timestep": time_B, "time_ids": place_B6}
    given |= {"encoder_hidden_states": context_BLD, "encoder_attention_mask": real_BL}
    given |= {"class_labels": classes_B}
    session: Any = InferenceSession(tmp_path / "out" / "model.onnx")
    (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    assert not real_BL.all() and said_BCHW.abs().max() > 0.01
    assert (torch.from_numpy(found) - said_BCHW).abs().max() < 1e-5


T5 = {"encoder": {"kind": "text", "weights": "/nowhere"}, "width": 16}


@pytest.mark.parametrize(
    ("target", "model", "settings", "said"),
    [
        (pipe, {"text": "blocks"}, [], "--set model.text=clip"),
        (
            pipe,
            {"text": "blocks", "texts": [T5]},
            [],
            r"frozen encoders \(model\.texts\).*padded=true",
        ),
        (pipe, {}, ["objectives.ddpm.schedule.steps=500"], "schedule.steps=1000"),
        (single_file, {}, [], "holds a KL autoencoder"),
    ],
)
def test_what_cannot_be_exported_says_what_could(
    target: Any, model: dict[str, Any], settings: list[str], said: str, text: Text
) -> None:
    values = plain(vlp_easy())
    values["model"], values["objectives"] = {**UNET, **model}, [{"kind": "ddpm"}]
    run = revise(values, settings, KINDS, source="small")
    with pytest.raises(ExportError, match=said):
        target.require(run)
