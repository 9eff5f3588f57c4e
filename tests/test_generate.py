"""Images from trained tasks: any objective, first stage, size, sampler; keyed by the seed."""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.config import plain
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, RecipeError
from diptych.finetune.parts import KINDS
from diptych.finetune.sample import grid, painter
from diptych.pretrain.checkpoint import base_digest, open_checkpoint
from diptych.pretrain.diffusion.generate import asked, generate, latents, to_bytes
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.first_stages import Autoencoder, Taef2, Vq
from diptych.pretrain.objective import View
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
Keep = Callable[..., RunDir]
MODELS = {
    "dit": {"kind": "dit", "patch": 2, "width": 32, "depth": 1, "heads": 2, "tokens": 12},
    "unet": {"kind": "unet", "channels": [16, 16], "groups": 8, "heads": 2, "width": 32},
}
PROMPTS = [f"a picture with number {number}" for number in range(3)]
FAST = Sampling(steps=3, guidance_scale=2.0)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TAEF2 = Path("/work/shared/data/taef2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A KL autoencoder of 4 channels at half the size, as diffusers writes it."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    kind: Any = AutoencoderKL
    made = kind(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    url = str(tmp_path_factory.mktemp("vae"))
    made.save_pretrained(url)
    return url


def recipe(model: str, objective: str, *settings: str) -> Run:
    values = plain(vlp_easy())
    values["model"] = MODELS[model] | {"image_size": 16, "tokens": 12}
    values["objectives"] = [{"kind": objective}]
    return revise(values, list(settings), KINDS, source="small")


def make(run: Run, text: Text) -> Task:
    """A task whose every layer says something: some begin at zero."""
    torch.manual_seed(0)
    task = run.task(text)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.1)
    return task


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_an_image_depends_on_seed_number_and_prompt_alone(
    model: str, objective: str, text: Text
) -> None:
    task = make(recipe(model, objective), text).train()
    found = generate(task, text, PROMPTS, FAST)
    assert found.shape == (3, 16, 16, 3)
    assert found.dtype == torch.uint8
    assert task.training
    alone = generate(task, text, PROMPTS[1:2], FAST, first=1)
    assert (alone[0].int() - found[1].int()).abs().max() <= 1
    cut = generate(task, text, PROMPTS, FAST, rows=2)
    assert (cut.int() - found.int()).abs().max() <= 1
    other = generate(task, text, PROMPTS, FAST.model_copy(update={"seed": 1}))
    assert not torch.equal(other, found)
    same_noise = generate(task, text, [PROMPTS[2]], FAST)
    assert not torch.equal(same_noise[0], found[0])


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [
        ("ddpm", "ddim"), ("ddpm", "ddpm"), ("ddpm", "DPMSolverMultistepScheduler"),
        ("ddpm", "EulerAncestralDiscreteScheduler"), ("flow", "euler"), ("flow", "heun"),
        ("flow", "FlowMatchEulerDiscreteScheduler"),
    ],
)  # fmt: skip
def test_any_sampler_draws_at_any_size(objective: str, sampler: str, text: Text) -> None:
    task, looks = make(recipe("unet", objective), text), list[int]()
    how = Sampling(steps=4, sampler=sampler, size=(32, 8))
    found = generate(task, text, PROMPTS[:2], how, told=looks.append)
    assert found.shape == (2, 8, 32, 3)
    assert 4 <= sum(looks) <= 8
    assert torch.equal(found, generate(task, text, PROMPTS[:2], how))


def test_our_ddim_is_that_of_diffusers(text: Text) -> None:
    """The same timesteps, end and steps as CompVis' script, which diffusers has as options."""
    from diptych.pretrain.diffusion import samplers

    run = recipe("unet", "ddpm", "objectives.ddpm.predict=v")
    task = make(run, text)
    objective: Any = task.objectives[0]
    [(_, ours)] = list(latents(task, text, PROMPTS, Sampling(steps=5, guidance_scale=3.0)))
    made = samplers.scheduler(
        "DDIMScheduler", objective.schedule, "v", steps_offset=1, set_alpha_to_one=False
    )
    from diptych.data.draws import normal, row_key

    keys_B = torch.tensor([row_key("generate", 0, number) for number in range(3)])
    how = Sampling(guidance_scale=3.0)
    with torch.no_grad():
        ask = asked(task.eval(), text, PROMPTS, keys_B, how, lambda view: view)
        x_T = normal(keys_B, "start", 3 * 16 * 16).float().view(3, 3, 16, 16)
        theirs = samplers.run_scheduler(made, ask, x_T, 5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_euler_is_that_of_diffusers(text: Text) -> None:
    task = make(recipe("unet", "flow", "objectives.flow.shift=2.0"), text)
    found = [
        generate(task, text, PROMPTS, Sampling(steps=6, sampler=name))
        for name in ("euler", "FlowMatchEulerDiscreteScheduler")
    ]
    # diffusers spaces the times from 1 to 1/1000, we from 1 to 0: near, not equal.
    assert (found[0].int() - found[1].int()).abs().float().mean() < 12


def test_guidance_of_one_asks_once_and_negative_texts_lead_away(text: Text) -> None:
    task, seen = make(recipe("unet", "ddpm"), text), list[int]()
    unet: Any = task.model
    unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0].image_BCHW)))
    generate(task, text, PROMPTS, Sampling(steps=2, guidance_scale=1.0))
    assert seen == [3, 3]
    plain_one = generate(task, text, PROMPTS, FAST)
    assert seen[2:] == [6, 6, 6]
    away = generate(task, text, PROMPTS, FAST.model_copy(update={"negative": "number 9"}))
    assert not torch.equal(plain_one, away)


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_latents_are_decoded_by_the_frozen_first_stage(
    objective: str, vae: str, text: Text, rows: Rows, keep: Keep
) -> None:
    stage = f"model.first_stage={{kind: autoencoder, weights: '{vae}', downsampling: 2}}"
    run = recipe("unet", objective, stage)
    task = make(run, text)
    assert task.model.unet.config.in_channels == 4
    assert not [name for name in task.state_dict() if "stage" in name]
    losses = task(rows(4))
    losses.total.backward()
    assert not [name for name in task.state_dict() if "stage" in name]
    assert losses.total.isfinite()
    found = generate(task, text, PROMPTS, FAST.model_copy(update={"size": (32, 16)}))
    assert found.shape == (3, 16, 32, 3)
    [(_, raw)] = list(latents(task, text, PROMPTS, FAST))
    assert raw.shape == (3, 4, 8, 8)
    assert base_digest(task)


def test_the_first_stage_is_diffusers_own(vae: str, rows: Rows) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    stage = Autoencoder(weights=vae, downsampling=2).open()
    theirs: Any = AutoencoderKL.from_pretrained(vae)
    image = rows(2).image_BCHW.float() / 127.5 - 1
    with torch.no_grad():
        said = theirs.eval().encode(image).latent_dist
        ours = stage.encode(image)
        torch.testing.assert_close(ours, (said.mean - 0.25) * 0.5)
        torch.testing.assert_close(stage.decode(ours), theirs.decode(said.mean).sample.clamp(-1, 1))
        keys_B = torch.arange(2)
        drawn = stage.encode(image, keys_B)
        torch.testing.assert_close(drawn[1:], stage.encode(image[1:], keys_B[1:]))
        spread = (drawn - ours) / 0.5 / said.std
    assert 0.7 < float(spread.std()) < 1.3


def test_another_first_stage_is_refused(
    vae: str, text: Text, tmp_path: Path, keep: Keep, rows: Rows
) -> None:
    from safetensors.torch import load_file, save_file

    from diptych.finetune.start import trained_task

    stage = f"model.first_stage={{kind: autoencoder, weights: '{vae}', downsampling: 2}}"
    task = make(run := recipe("unet", "ddpm", stage), text)
    place = keep(run, task, text)
    base = base_digest(task)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_bytes((Path(vae) / "config.json").read_bytes())
    [weights] = Path(vae).glob("*.safetensors")
    save_file({n: t * 1.01 for n, t in load_file(weights).items()}, folder / weights.name)
    other = recipe("unet", "ddpm", stage.replace(vae, str(folder)))
    assert base_digest(make(other, text)) != base
    checkpoint = open_checkpoint(place.url)
    with pytest.raises(CheckpointError, match="trained beside frozen weights"):
        trained_task(other, text, checkpoint)


def test_vq_latents_are_those_before_the_codebook(tmp_path: Path, rows: Rows) -> None:
    from diffusers.models.autoencoders.vq_model import VQModel

    torch.manual_seed(0)
    kind: Any = VQModel
    made = kind(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, norm_num_groups=4,
        num_vq_embeddings=16,
    )  # fmt: skip
    made.save_pretrained(str(tmp_path))
    stage = Vq(weights=str(tmp_path), downsampling=2).open()
    image = rows(2).image_BCHW.float() / 127.5 - 1
    with torch.no_grad():
        found = stage.encode(image)
        torch.testing.assert_close(found, made.encode(image).latents * 0.18215)
        assert stage.decode(found).shape == image.shape
    with pytest.raises(RecipeError, match="downsampling=2"):
        Vq(weights=str(tmp_path)).open()


@pytest.mark.skipif(not TAEF2.exists(), reason=f"{TAEF2} is not here")
def test_taef2_gives_pictures_back() -> None:
    stage = Taef2(
        weights=str(TAEF2 / "taef2_encoder.safetensors"),
        decoder=str(TAEF2 / "taef2_decoder.safetensors"),
    ).open()
    with tarfile.open(TAEF2.parent / "dreambooth-20.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".jpg"))
        opened = Image.open(tar.extractfile(name)).convert("RGB")  # pyright: ignore[reportArgumentType]
    photo = opened.resize((128, 128), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latent = stage.encode(image)
        back = stage.decode(latent)
    assert latent.shape == (1, 32, 16, 16)
    assert 0.5 < float(latent.std()) < 1.2
    assert -10 * float((back - image).div(2).square().mean().log10()) > 28  # dB


@pytest.mark.parametrize(
    ("model", "objective", "how", "said"),
    [
        ("unet", "ddpm", {"size": (15, 16)}, "multiples of 2 pixels"),
        ("unet", "ddpm", {"sampler": "euler"}, "is for flows"),
        ("unet", "flow", {"sampler": "ddim"}, "is for diffusion"),
        ("unet", "flow", {"eta": 1.0}, "leave eta at 0"),
        ("unet", "flow", {"sampler": "DDIMScheduler"}, "knows no rectified flows"),
        ("unet", "ddpm", {"sampler": "DDIMSheduler"}, "Did you mean 'DDIMScheduler'"),
        ("unet", "ddpm", {"sampler": "HeunDiscreteScheduler", "eta": 1.0}, "has no eta"),
        ("unet", "ddpm", {"steps": 1001}, "the model knows 1000"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    model: str, objective: str, how: dict[str, Any], said: str, text: Text
) -> None:
    task = make(recipe(model, objective), text)
    with pytest.raises(RecipeError, match=said):
        generate(task, text, PROMPTS, Sampling(**how))


def test_thresholds_are_for_pixels(vae: str, text: Text, small: Callable[..., Run]) -> None:
    stage = f"model.first_stage={{kind: autoencoder, weights: '{vae}', downsampling: 2}}"
    with pytest.raises(RecipeError, match="draws latents"):
        generate(make(recipe("unet", "ddpm", stage), text), text, PROMPTS, Sampling(threshold=0.9))
    task = make(recipe("unet", "ddpm"), text)
    found = [
        generate(task, text, PROMPTS, Sampling(steps=4, threshold=ratio)) for ratio in (None, 0.9)
    ]
    assert not torch.equal(*found)
    torch.manual_seed(0)
    with pytest.raises(RecipeError, match="draws no images"):
        generate(small().task(text), text, PROMPTS)


def test_bytes_are_cut_as_compvis_does() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 5.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_bytes(image)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_sample_writes_pictures(
    text: Text, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = keep(run := recipe("unet", "ddpm", "name=paints"), make(run, text), text)
    out = tmp_path / "out"
    words = ["sample", place.url, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--n", "2"]
    words += ["--steps", "2", "--size", "32x16", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout)["images"] == 4
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{number:05d}.png" for number in range(4)), "grid.png",
    ]  # fmt: skip
    with Image.open(out / "00003.png") as picture:
        assert picture.size == (32, 16)
        last = torch.from_numpy(np.array(picture))
    with Image.open(out / "grid.png") as sheet:
        assert sheet.size == (2 * 34 + 2, 2 * 18 + 2)
    found = painter(place).draw(
        [PROMPTS[1]], Sampling(steps=2, size=(32, 16)), first=3
    )  # the same image alone
    assert (found[0].int() - last.int()).abs().max() <= 1


def test_a_grid_has_every_image_in_its_place() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 4, 6, 3) + 10
    sheet: Tensor = grid(images, columns=3)
    assert sheet.shape == (2 + 2 * 6, 2 + 3 * 8, 3)
    assert sheet[2, 2, 0] == 10
    assert sheet[8, 2 + 8, 0] == 14
    assert sheet[8, 2 + 16, 0] == 0


@pytest.mark.parametrize("model", MODELS)
def test_classes_are_told_and_dropped_with_the_text(model: str, text: Text, rows: Rows) -> None:
    run = recipe(model, "ddpm", "model.classes=[cat, dog]", "objectives.ddpm.drop=0.5")
    task, batch = make(run, text), rows(16)
    batch = replace(batch, fields=tuple({"cls": number % 2} for number in range(16)))
    losses = task(batch)
    losses.total.backward()
    assert losses.total.isfinite()
    shown = task.objectives[0].hide(task.look(batch), task.words)
    assert shown.classes_B is not None
    kept_B = shown.classes_B >= 0
    assert 2 < int(kept_B.sum()) < 14
    empty_B = shown.tokens_BL.eq(text.encode([""])[0]).all(1)
    assert torch.equal(empty_B, ~kept_B)
    how = FAST.model_copy(update={"negative": "none"})
    cat, dog = (generate(task, text, [name], how) for name in ("cat", "dog"))
    assert not torch.equal(cat, dog)
    with pytest.raises(RecipeError, match=r"of class 3; model.classes names 2"):
        task(replace(batch, fields=({"cls": 3}, *batch.fields[1:])))


def test_a_text_that_names_a_class_is_of_it_in_training_as_in_drawing(
    text: Text, rows: Rows
) -> None:
    task = make(recipe("unet", "ddpm", "model.classes=[cat, dog]"), text)
    batch = replace(rows(4), fields=({}, {}, {"cls": 0}, {}), texts=("dog", "cat", "dog", "a dog"))
    shown = task.look(batch)
    assert shown.classes_B is not None
    assert shown.classes_B.tolist() == [1, 0, 0, 2]
    drawn = list[View]()

    def keep(view: View) -> View:
        drawn.append(view)
        return view

    asked(task, text, ["dog", "cat", "a dog"], batch.draws_B[:3], Sampling(guidance_scale=1), keep)
    assert drawn[0].classes_B is not None
    assert drawn[0].classes_B.tolist() == [1, 0, 2]


@pytest.mark.parametrize("model", MODELS)
def test_activations_computed_again_give_the_same_gradients(
    model: str, text: Text, rows: Rows
) -> None:
    run, batch = recipe(model, "ddpm"), rows(4)
    plain_one, again = make(run, text).train(), make(run, text).train()
    again.recompute()
    losses = [task(batch).total for task in (plain_one, again)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(plain_one.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
