"""Sizes and crops as a model is told them: from the stream, from a cache, at sampling."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config import plain
from diptych.data import cache, index, storage
from diptych.data.batch import Batch
from diptych.data.hints import Wanted
from diptych.data.join import Joined
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import tar
from diptych.data.plan import Plan
from diptych.data.precompute import precompute
from diptych.data.tokens import Text
from diptych.data.transforms import Frame, Pixels, cover, covered, frame, placing, told
from diptych.errors import ExportError, RecipeError
from diptych.finetune import pipeline
from diptych.finetune.parts import KINDS
from diptych.pretrain.diffusion.generate import Given, generate
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.encoders import Palette
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
SIZES = [(48, 40), (30, 70), (24, 24), (90, 26), (16, 50), (25, 24)]
MODELS = {
    "dit": {"kind": "dit", "patch": 4, "width": 32, "depth": 1, "heads": 2},
    "unet": {"kind": "unet", "channels": [16, 16], "groups": 8, "heads": 2, "width": 32},
}


def recipe(model: str, *settings: str) -> Run:
    values = plain(vlp_easy())
    values["model"] = MODELS[model] | {"image_size": 16, "tokens": 12, "placed": True}
    values["objectives"] = [{"kind": "ddpm"}]
    return revise(values, list(settings), KINDS, source="small")


def loud(run: Run, text: Text) -> Task:
    """A task whose every layer says something: some begin at zero."""
    torch.manual_seed(0)
    task = run.task(text)
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return task


def ramp(width: int, height: int) -> np.ndarray:
    """Red grows to the right and green downwards, so that a row says where it was cut."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width)[None]
    pixels[..., 1] = np.linspace(0, 250, height)[:, None]
    return pixels


@pytest.fixture
def source(tmp_path: Path) -> index.Manifest:
    found: list[Any] = []
    for number in range(12):
        file = io.BytesIO()
        Image.fromarray(ramp(*SIZES[number % len(SIZES)])).save(file, "PNG")
        found.append((f"{number:04d}", {"png": file.getvalue(), "txt": b"a picture"}))
    storage.write(str(tmp_path / "set" / "00000.tar"), tar(found))
    return index.build([str(tmp_path / "set" / "00000.tar")])


def loaded(source: index.Manifest, text: Text, joined: Any = None, **options: Any) -> list[Batch]:
    asked = Recipe(text="txt", image_size=24, seed=3, placed=True, **options)
    plan = Plan(source, 3, 4)
    return [batch for _, batch in Loader(plan, text, asked, stop=6, joined=joined)]


@pytest.mark.parametrize("pixels", [{}, {"resize": 32, "crop": "random", "flip": 0.5}])
def test_a_row_says_where_it_was_cut(
    pixels: dict[str, Any], source: index.Manifest, text: Text
) -> None:
    flips = set[bool]()
    for batch in loaded(source, text, pixels=Pixels(**pixels)):
        assert batch.placed_B6 is not None
        for row, key in enumerate(batch.keys):
            size = SIZES[int(key.rpartition("/")[2]) % len(SIZES)]
            height, width, top, left, *target = batch.placed_B6[row].tolist()
            assert ((width, height), target) == (size, [24, 24])
            seen_CHW = batch.image_BCHW[row].numpy()
            flipped = bool(seen_CHW[0, 0, 0] > seen_CHW[0, 0, -1])
            whole_CHW = cover(ramp(*size), Frame(width=24, height=24, **pixels))
            if flipped:  # the crop is of the picture as it is seen
                whole_CHW = whole_CHW[..., ::-1]
            found = whole_CHW[:, int(top) : int(top) + 24, int(left) : int(left) + 24]
            flips.add(flipped)
            assert abs(found.astype(int) - seen_CHW).max() <= (12 if flipped else 0)
    assert flips == ({False, True} if pixels else {False})


def test_where_it_is_cut_is_known_without_pixels() -> None:
    for width, height in [(48, 40), (31, 77), (1000, 7), (24, 24), (333, 500)]:
        for options in ({}, {"crop": "random", "flip": 0.5, "resize": 40}):
            wanted = Frame(width=24, height=16, **options)
            _, placed = frame(np.zeros((height, width, 3), np.uint8), wanted, 77)
            assert placing((width, height), wanted, 77) == placed
            across, down = covered((width, height), wanted)
            assert 0 <= told(placed, wanted)[3] <= across - 24
            assert 0 <= told(placed, wanted)[2] <= down - 16


def test_a_cache_of_latents_has_the_same_places_and_hints(
    source: index.Manifest, text: Text, tmp_path: Path
) -> None:
    """No picture is decoded, and each row still has its place and its own hint, cut alike."""

    class Mean:
        name, digest = "mean", "0" * 16

        def encode(self, images_BCHW: Any, texts: Any) -> Any:
            return {"latent": images_BCHW.astype(np.float32).mean((2, 3), keepdims=True)}

    spec = cache.Spec(
        encoder="mean", encoder_digest="0" * 16, reads=("image",), dtype="float32",
        sizes=((24, 24),), exact=False,
    )  # fmt: skip
    precompute(source, Mean(), spec, str(tmp_path / "latents"))  # pyright: ignore[reportArgumentType]
    hint = Palette()
    precompute(source, hint.open(), hint.spec(sizes=[(24, 24)]), str(tmp_path / "palette"))
    wanted = {"palette": Wanted(channels=3, urls=(str(tmp_path / "palette"),))}
    made = cache.open_cache(str(tmp_path / "latents"), source)
    live = loaded(source, text, hints=wanted)
    known = loaded(source, text, Joined(Plan(source, 3, 4), [[made]]), hints=wanted)
    for one, other in zip(live, known, strict=True):
        assert one.keys == other.keys and "latent" in other.arrays
        assert torch.equal(one.placed_B6, other.placed_B6)  # pyright: ignore[reportArgumentType]
        assert torch.equal(one.hints["palette"], other.hints["palette"])
    assert any(batch.hints["palette"].any() for batch in known)


@pytest.mark.parametrize("model", MODELS)
def test_a_denoiser_is_told(model: str, text: Text, rows: Rows) -> None:
    task = loud(recipe(model), text)
    batch = rows(4)
    whole = replace(batch, placed_B6=torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(4, -1))
    cut = replace(batch, placed_B6=torch.tensor([[32.0, 64, 0, 24, 16, 16]]).expand(4, -1))
    losses = [task(each).total for each in (batch, whole, cut)]
    torch.testing.assert_close(losses[0], losses[1])  # what is not said is whole
    assert abs(float((losses[2] - losses[1]).detach())) > 1e-3
    losses[2].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    parts = [float(task(cut.take(first, first + 2)).total.detach()) for first in (0, 2)]
    assert sum(parts) / 2 == pytest.approx(float(losses[2].detach()), rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_samples_are_drawn_as_of_whole_pictures(model: str, text: Text) -> None:
    task, how = loud(recipe(model), text), Sampling(steps=2, guidance_scale=2.0, size=(32, 16))
    plain_one = generate(task, text, ["a", "b"], how)
    said = Given(original=(32, 16), crop=(0, 0))
    assert torch.equal(plain_one, generate(task, text, ["a", "b"], how, given=said))
    other = generate(task, text, ["a", "b"], how, given=Given(original=(640, 8), crop=(9, 0)))
    assert not torch.equal(plain_one, other)
    blind = loud(recipe(model, "model.placed=false"), text)
    with pytest.raises(RecipeError, match="is not told sizes and crops"):
        generate(blind, text, ["a"], how, given=said)


def test_time_may_scale_and_shift_the_norms(text: Text, rows: Rows) -> None:
    task = loud(recipe("unet", "model.norm=scale_shift"), text)
    block: Any = task.model.unet.down_blocks[0].resnets[0]
    assert block.time_emb_proj.out_features == 2 * 16
    assert task(rows(2)).total.isfinite()


def test_what_has_no_place_for_them_is_refused(text: Text) -> None:
    with pytest.raises(ExportError, match="is told sizes and crops"):
        pipeline.require(recipe("unet", "model.text=clip"))


def test_hints_that_nobody_could_draw_are_refused_before_training(
    source: index.Manifest, tmp_path: Path
) -> None:
    """A live hint beside a cache of latents: there would be no picture to draw it of."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from diptych.pretrain.encoders import Autoencoder

    kind: Any = AutoencoderKL
    kind(block_out_channels=(8,), latent_channels=4, norm_num_groups=4).save_pretrained(
        str(tmp_path / "vae")
    )
    encoder = Autoencoder(weights=str(tmp_path / "vae"))
    precompute(source, encoder.open(), encoder.spec(sizes=[(16, 16)]), str(tmp_path / "latents"))
    stage = {"kind": "autoencoder", "weights": str(tmp_path / "vae"), "downsampling": 1}
    values = plain(recipe("unet"))
    values["model"] |= {"first_stage": stage}
    values |= {"control": {"kind": "controlnet", "hint": {"kind": "canny"}}, "start_from": "base"}
    values["data"] |= {
        "train": source.url.removesuffix("/index"), "caches": [str(tmp_path / "latents")]
    }  # fmt: skip
    run = revise(values, [], KINDS, source="small")
    plan = Plan(source, 0, 4)
    with pytest.raises(RecipeError, match=r"Make a cache of it, too.*--encoder canny --size 16"):
        run.joined(plan)
    assert revise(values, ["data.hints.canny=here"], KINDS, source="small").joined(plan)
