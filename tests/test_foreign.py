"""Weights of others: what was exported comes back to the bit, and what does not fit is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export_pipeline import FACTS, levels, made, written
from torch import Tensor

from diptych.config import plain
from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, RecipeError, RunError
from diptych.finetune.adapters import Tokens
from diptych.finetune.bring import bring
from diptych.finetune.dreambooth.recipe import Wishes
from diptych.finetune.dreambooth.story import ready
from diptych.finetune.export import embedding, pipe, single_file
from diptych.finetune.features import open_features
from diptych.finetune.foreign_recipe import objective_values
from diptych.finetune.merge import merged, plain_weights
from diptych.finetune.pipeline import drawn
from diptych.finetune.recipes import find
from diptych.finetune.sample import painter
from diptych.finetune.start import fresh_task
from diptych.finetune.verify import verify
from diptych.pretrain import stored
from diptych.pretrain.adapter import adapt
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
RECIPE = "name: mine\nstart_from: {url}\ndata: {{train: nowhere/set}}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def trained(home: Path, text: Text) -> tuple[Run, Task]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = levels([8, 8], AutoencoderKL, latent_channels=4, scaling_factor=0.7)
    vae.save_pretrained(home / "vae")
    stage = {"kind": "autoencoder", "weights": str(home / "vae"), "latent_channels": 4}
    return made(
        text, "objectives.ddpm.predict=v", first_stage={**stage, "downsampling": 2}, image_size=16
    )


@pytest.fixture(scope="module")
def folder(home: Path, text: Text, trained: tuple[Run, Task]) -> Path:
    pipe.write(home / "pipe", *trained, text, FACTS)
    return home / "pipe"


@pytest.fixture(scope="module")
def single(home: Path, text: Text, trained: tuple[Run, Task]) -> Path:
    single_file.write(home / "single", *trained, text, FACTS)
    return home / "single"


def recipe(path: Path, url: Path, more: str = "", *settings: str) -> Run:
    path.write_text(RECIPE.format(url=url) + more)
    return find(str(path), list(settings))


def losses(task: Task, batch: Batch) -> Tensor:
    return task(batch).total


def test_a_recipe_that_says_nothing_is_filled_from_the_folder(
    folder: Path, tmp_path: Path, trained: tuple[Run, Task], text: Text, rows: Rows
) -> None:
    run = recipe(tmp_path / "mine.yaml", folder)
    model = plain(trained[0])["model"] | {"attends": [False, True]}
    model["first_stage"]["weights"] = str(folder / "vae")
    there = plain(run)["model"]
    there["first_stage"]["weights"] = there["first_stage"]["weights"].removeprefix("file://")
    assert there == model
    assert plain(run)["objectives"][0] == plain(trained[0])["objectives"][0]
    assert run.data.tokenizer.endswith("/pipe/tokenizer/tokenizer.json")
    task = fresh_task(run, text)
    theirs = trained[1].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in task.state_dict().items())
    assert torch.equal(losses(task, rows(4)), losses(trained[1], rows(4)))


def test_it_learns_on_from_there(folder: Path, tmp_path: Path, text: Text, rows: Rows) -> None:
    task = fresh_task(recipe(tmp_path / "mine.yaml", folder), text)
    optimiser = torch.optim.AdamW(task.parameters(), lr=1e-3)
    before = losses(task, rows(4))
    for _ in range(3):
        optimiser.zero_grad()
        losses(task, rows(4)).backward()
        optimiser.step()
    assert losses(task, rows(4)) < before


def test_a_single_file_is_started_from(
    single: Path, home: Path, tmp_path: Path, trained: tuple[Run, Task], text: Text
) -> None:
    """Ours with its settings beside it; the autoencoder is named, since it is in no folder."""
    stage = json.dumps(plain(trained[0])["model"]["first_stage"])
    with pytest.raises(RecipeError, match="`diptych import` unpacks it"):
        recipe(tmp_path / "mine.yaml", single)
    run = recipe(tmp_path / "mine.yaml", single, f"model: {{kind: unet, first_stage: {stage}}}")
    theirs = trained[1].state_dict()
    ours = fresh_task(run, text).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("which", ["folder", "single"])
def test_imported_it_is_a_run_that_draws_the_same(
    which: str, folder: Path, single: Path, tmp_path: Path, trained: tuple[Run, Task], text: Text
) -> None:
    from diptych.pretrain.diffusion.generate import generate

    place = RunDir(str(tmp_path / "runs" / "mine"))
    source = folder if which == "folder" else single
    facts = bring(str(source), place, [], data=None, words=None)
    assert facts["first stage"] == "autoencoder"
    found = painter(place)
    assert (found.run.start_from, found.run.data.test) == (None, None)
    how = Sampling(steps=2, guidance_scale=2)
    ours = found.draw(["a picture", "number 3"], how)
    assert torch.equal(ours, generate(trained[1].eval(), text, ["a picture", "number 3"], how))
    if which == "single":
        (single / "model.safetensors").rename(tmp_path / "away")  # the run is whole without it
        assert torch.equal(painter(place).draw(["a picture"], how), ours[:1])
        (tmp_path / "away").rename(single / "model.safetensors")


def test_a_lone_file_of_stable_diffusion_tells_its_shapes(tmp_path: Path, text: Text) -> None:
    """Real names and kinds of blocks, small: 32 channels, so that 32 groups divide them."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from sd1 import clip_folder, file_of

    kinds = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 64),
        down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    vae = levels([32, 32], AutoencoderKL, layers_per_block=2, groups=32)
    clip = clip_folder(tmp_path / "clip", width=64)
    file_of(tmp_path / "sd.safetensors", unet, vae, clip)
    place = RunDir(str(tmp_path / "runs" / "sd"))
    with pytest.raises(RecipeError, match="Say --tokenizer FOLDER"):
        bring(str(tmp_path / "sd.safetensors"), place, [], data=None, words=None)
    words = str(tmp_path / "clip")
    facts = bring(
        str(tmp_path / "sd.safetensors"), place, ["model.image_size=16"], data=None, words=words
    )
    assert facts["run"] == place.url
    found = painter(place)
    named: Any = found.task.model
    assert all(torch.equal(v, named.unet.state_dict()[n]) for n, v in unet.state_dict().items())
    assert found.run.objectives[0].kind == "ddpm"
    image_BCHW = torch.rand(1, 3, 16, 16) * 2 - 1
    assert found.task.stage
    with torch.no_grad():
        latent = found.task.stage.here().encode(image_BCHW)
        torch.testing.assert_close(latent, vae.encode(image_BCHW).latent_dist.mean * 0.18215)
    states = found.task.readers[0].read(["a cat"], found.task.anchor)
    assert states.real_BL.all() and states.tokens_BLD.shape[1] == 12
    found.draw(["a cat"], Sampling(steps=1))


FAULTS: list[tuple[str, str]] = [
    ("other", r"channels.*\[16, 32\].*\(16, 16\)|block_out_channels=.*Set model\.channels"),
    ("lacks", r"lacks 1 tensors of the recipe's unet: conv_in\.bias"),
    ("extra", r"has besides 1 tensors of the recipe's unet: odd"),
    ("family", r"use_linear_projection=True.*Stable Diffusion 1"),
    ("pickle", r"only diffusion_pytorch_model\.bin, a pickle.*safe_serialization"),
    ("cut", r"no whole safetensors file"),
    ("blocks", r"Set model\.text=clip"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_what_does_not_fit_is_named(
    fault: str, said: str, folder: Path, tmp_path: Path, text: Text
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "pipe")
    unet = tmp_path / "pipe" / "unet"
    file, settings = unet / "diffusion_pytorch_model.safetensors", []
    state, config = load_file(file), json.loads((unet / "config.json").read_text())
    if fault == "lacks":
        del state["conv_in.bias"]
    elif fault == "extra":
        state["odd"] = torch.zeros(1)
    elif fault == "family":
        config["use_linear_projection"] = True
    save_file(state, file)
    (unet / "config.json").write_text(json.dumps(config))
    if fault == "other":
        settings = ["model.channels=[16,16]"]
    elif fault == "blocks":
        settings = ["model.text=blocks", "model.tokens=12"]
    elif fault == "pickle":
        file.rename(file.with_suffix(".bin"))
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=said):
        fresh_task(
            recipe(tmp_path / "mine.yaml", tmp_path / "pipe", "model: {kind: unet}\n", *settings),
            text,
        )


def test_latent_diffusions_pipeline_comes_back(home: Path, text: Text, tmp_path: Path) -> None:
    """LDMTextToImagePipeline calls the parts `bert` and `vqvae`."""
    from diffusers.models.autoencoders.vq_model import VQModel

    stage = levels([8] * 4, VQModel, latent_channels=3, num_vq_embeddings=16)
    stage.save_pretrained(home / "vq")
    long = tokens.from_text(text.tokenizer.to_str(), 77)
    first = {"kind": "vq", "weights": str(home / "vq"), "latent_channels": 3, "downsampling": 8}
    run, task = made(long, tokens=77, first_stage=first, image_size=32)
    pipe.write(tmp_path / "ldm", run, task, long, FACTS)
    place = RunDir(str(tmp_path / "runs" / "ldm"))
    assert bring(str(tmp_path / "ldm"), place, [], data=None, words=None)["first stage"] == "vq"
    ours = painter(place).task.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in task.state_dict().items())


def held(home: Path) -> dict[str, bytes]:
    files = (path for path in home.rglob("*") if path.is_file())
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


@pytest.mark.parametrize("fault", ["other file", "other settings", "own run"])
def test_a_run_that_is_there_is_left_as_it_was(fault: str, single: Path, tmp_path: Path) -> None:
    """A lone file unpacks its parts into the run's folder: not into that of another run."""
    import shutil

    shutil.copytree(single, tmp_path / "again")
    state = load_file(single / "model.safetensors")
    save_file({name: value + 1 for name, value in state.items()}, tmp_path / "again" / "other")
    (tmp_path / "again" / "other").rename(tmp_path / "again" / "model.safetensors")
    place = RunDir(str(tmp_path / "runs" / "mine"))
    bring(str(single), place, [], data=None, words=None)
    source, settings = single, list[str]()
    if fault == "other file":
        source = tmp_path / "again"
    elif fault == "other settings":
        settings = ["steps=2"]
    else:
        facts = place.json("run.json")
        place.put("run.json", {name: facts[name] for name in facts if name != "source"})
    (Path(place.url) / "tokenizer.json").write_text("precious")
    before = held(Path(place.url))
    with pytest.raises(RunError, match="another name with --run"):
        bring(str(source), place, settings, data=None, words=None)
    assert held(Path(place.url)) == before


def test_the_same_source_may_be_imported_again(single: Path, tmp_path: Path) -> None:
    place = RunDir(str(tmp_path / "runs" / "mine"))
    assert bring(str(single), place, [], data=None, words=None) == bring(
        str(single), place, [], data=None, words=None
    )


def test_a_schedule_that_is_a_list_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "pipe")
    file = tmp_path / "pipe" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trained_betas": [0.1, 0.2]}))
    place = RunDir(str(tmp_path / "run"))
    with pytest.raises(RecipeError, match="lists its betas"):
        bring(str(tmp_path / "pipe"), place, [], data=None, words=None)
    settings = ["objectives=[{kind: ddpm}]"]
    assert bring(str(tmp_path / "pipe"), place, settings, data=None, words=None)["run"] == place.url
    assert objective_values({"trained_betas": None})["kind"] == "ddpm"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "dynamic",
        ),
        ({"beta_schedule": "linear", "trained_betas": [0.1]}, "lists its betas"),
    ],
)
def test_an_objective_that_is_not_here_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        objective_values(config)


@pytest.mark.parametrize("index", ["index.fp16", "fp16.index", "index"])
def test_shards_of_a_variant_are_found(index: str, tmp_path: Path) -> None:
    shards = [f"diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard in shards:
        (tmp_path / shard).write_bytes(b"")
    weights = {"weight_map": dict(zip("ab", shards, strict=True))}
    (tmp_path / f"diffusion_pytorch_model.safetensors.{index}.json").write_text(json.dumps(weights))
    assert stored.files(str(tmp_path)) == [f"{tmp_path}/{shard}" for shard in shards]


WORDS = "adapters: [{kind: tokens, words: {<toy>: picture number, <it>: a}}]"


def test_new_words_for_clip_are_trained_alone_and_draw_the_same_in_diffusers(
    folder: Path, tmp_path: Path, text: Text, rows: Rows
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    run = recipe(tmp_path / "mine.yaml", folder, WORDS)
    larger = text.grown(run.new_words)
    task = fresh_task(run, larger)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    (vectors,) = [name for name in before if name.endswith(".rows")]
    table = vectors.replace(".rows", ".weight")
    like = torch.tensor([text.tokenizer.token_to_id(word) for word in ("picture", "number")])
    assert torch.equal(before[vectors][0], before[table][like].mean(0))
    ids, real = larger.encode(["a <toy> with <it>", "a picture", "<toy>", "number 1"])
    trained = [param for param in task.parameters() if param.requires_grad]
    task(replace(rows(4), tokens_BL=ids, real_BL=real)).total.backward()
    torch.optim.AdamW(trained, lr=0.5).step()
    after = task.state_dict()
    assert {n for n, v in after.items() if not torch.equal(v, before[n])} == {vectors}
    plain_table = plain_weights(task)[table]
    assert torch.equal(plain_table[: text.size], before[table])
    assert torch.equal(plain_table[text.size :], after[vectors])

    embedding.require(run)
    embedding.write(tmp_path / "words", run, task, larger, {})
    proof = embedding.prove(tmp_path / "words", run, task, larger, rows(2))
    assert proof["max_difference"] == {"<it>": 0.0, "<toy>": 0.0}
    assert verify(tmp_path / "words").wrong == []
    theirs: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for file, word in (("toy", "<toy>"), ("it", "<it>")):
        theirs.load_textual_inversion(f"{tmp_path}/words/{file}.safetensors", token=word)
    noise, prompts = torch.randn(2, 4, 8, 8), ["a <toy> number", "<it> with <toy>"]
    theirs.set_progress_bar_config(disable=True)
    shown = theirs(
        prompts, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="latent"
    ).images
    ours = drawn(run, task, larger, prompts, noise, torch.arange(2))
    torch.testing.assert_close(ours, shown, atol=1e-4, rtol=1e-4)
    proof = written(pipe, tmp_path / "whole", larger, *merged(run, task, larger))
    assert proof["loader"] == "diffusers.StableDiffusionPipeline"


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a pickle"):
        recipe(tmp_path / "mine.yaml", tmp_path / "model.ckpt", "model: {kind: unet}\n")
    with pytest.raises(RecipeError, match="neither a folder of diffusers"):
        bring(str(tmp_path), RunDir(str(tmp_path / "run")), [], data=None, words=None)


def test_a_folder_with_clip_keeps_it_frozen_and_learns(
    tmp_path: Path, rows: Rows, home: Path, trained: tuple[Run, Task]
) -> None:
    """As Stable Diffusion's own folder: CLIP's tokenizer, padding read, fp16 weights alone."""
    import shutil

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from sd1 import clip_folder

    source = tmp_path / "sd"
    clip_folder(source / "text_encoder", width=64)
    (source / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (source / "text_encoder" / name).rename(source / "tokenizer" / name)
    shutil.copytree(home / "vae", source / "vae")
    for file in (source / "vae" / "diffusion_pytorch_model", source / "text_encoder" / "model"):
        Path(f"{file}.safetensors").rename(f"{file}.fp16.safetensors")
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=8,
    ).half().save_pretrained(source / "unet", variant="fp16")
    place = RunDir(str(tmp_path / "runs" / "sd"))
    bring(str(source), place, [], data=None, words=None)
    found = painter(place)
    proof = written(pipe, tmp_path / "pipe", found.text, found.run, found.task)  # as it came in
    assert proof["loader"] == "diffusers.StableDiffusionPipeline"
    assert (tmp_path / "pipe" / "tokenizer" / "tokenizer.json").exists()
    assert (found.run.model.image_size, found.run.objectives[0].kind) == (16, "ddpm")
    task = found.task.train()
    batch = replace_texts(rows(2))
    task(batch).total.backward()
    assert all(param.grad is not None for param in task.parameters())
    with pytest.raises(RecipeError, match=r"frozen encoders .* learn no words"):
        adapt(task, [Tokens(words={"<toy>": "a"})], found.text.grown(["<toy>"]))
    wishes = Wishes(class_word="dog", adapter={"kind": "tokens", "words": {"<toy>": "a"}})
    with pytest.raises(RecipeError, match="Use --adapter lora"):  # before anything is drawn
        ready(found, "nowhere", place, wishes, open_features(None, found), how=Sampling())


def replace_texts(batch: Batch) -> Batch:
    return replace(batch, texts=tuple(f"number {key}" for key in batch.keys))
