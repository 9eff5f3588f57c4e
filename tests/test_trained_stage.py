"""A first stage that was trained here: its scale measured, exported, and the ground of a latent
run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_autoencoder import JUDGED, MODELS

from diptych.config import plain
from diptych.data import storage
from diptych.data.index import Manifest
from diptych.data.pack import Sample
from diptych.data.tokens import Text
from diptych.errors import ExportError, RecipeError
from diptych.finetune.clean_autoencoder import main as check
from diptych.finetune.export import autoencoder
from diptych.finetune.parts import KINDS
from diptych.finetune.trained_stage import publish
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.settle import first_rows, settled
from diptych.pretrain.task import Task

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]
Keep = Callable[..., RunDir]


@pytest.fixture
def place(
    tmp_path: Path, samples: Samples, dataset: Dataset, text: Text
) -> Callable[[str], tuple[Run, Task]]:
    """`place("kl")`: a run over 40 pictures on the disk, and its task as it is at first."""
    dataset([samples(20), samples(20, first=20)])
    (tmp_path / "tokenizer.json").write_text(text.tokenizer.to_str())

    def make(kind: str) -> tuple[Run, Task]:
        values = plain(vlp_easy()) | {"name": f"stage-{kind}", "batch": 16}
        values |= {"model": MODELS[kind], "objectives": [JUDGED]}
        values["data"] = {
            "train": str(tmp_path / "set"),
            "tokenizer": str(tmp_path / "tokenizer.json"),
        }
        run = revise(values, [], KINDS, source="stage")
        torch.manual_seed(0)
        return run, run.task(text)

    return make


def latent_run(stage: RunDir, made: Run, kind: str, *settings: str) -> Run:
    values = plain(vlp_easy()) | {"name": "latent", "batch": 16, "data": plain(made)["data"]}
    first = {"kind": kind, "weights": stage.url, "latent_channels": 2, "downsampling": 2}
    values["model"] = {"kind": "dit", "image_size": 16, "width": 16, "depth": 1, "heads": 2}
    values["model"] |= {"tokens": 12, "first_stage": first}
    values["objectives"] = [{"kind": "ddpm"}]
    return revise(values, list(settings), KINDS, source="latent")


@pytest.mark.parametrize(("name", "kind"), [("kl", "autoencoder"), ("vq", "vq")])
def test_a_run_is_the_first_stage_of_another(
    name: str, kind: str, place: Any, keep: Keep, text: Text
) -> None:
    run, task = place(name)
    made = keep(run, task, text)
    later = latent_run(made, run, kind)
    with pytest.raises(RecipeError, match=r"not finished\. Export"):
        later.model.first_stage.open()  # pyright: ignore
    told = publish(made)
    latents = torch.cat([batch.image_BCHW.float() / 127.5 - 1 for batch in first_rows(run)])
    net: Any = task.model.net
    with torch.no_grad():
        if name == "kl":
            said = net.encode(latents).latent_dist
            wide = (said.mean.var() + said.var.mean()).sqrt()  # of draws, not of means alone
        else:
            wide = net.encode(latents).latents.std()
    assert told["scaling_factor"] == pytest.approx(1 / float(wide), rel=2e-3)
    assert json.loads(storage.read(made.at("first_stage", "scale.json"))) == told
    stage: Any = later.model.first_stage.open()  # pyright: ignore
    assert stage.scale == told["scaling_factor"]
    drawn = stage.encode(latents, torch.arange(len(latents)))
    assert drawn.std() == pytest.approx(1, abs=0.05)
    task = later.task(text)
    batch = next(iter(first_rows(later)))
    task(batch).total.backward()


def test_a_scale_is_measured_once_and_kept_in_the_recipe(
    place: Any, keep: Keep, text: Text
) -> None:
    run, task = place("kl")
    made = keep(run, task, text)
    told = publish(made)
    later = latent_run(made, run, "autoencoder", "model.first_stage.scale=measured")
    with pytest.raises(RecipeError, match="is to be measured"):
        later.model.first_stage.open()  # pyright: ignore
    found: Any = settled(later).model
    assert found.first_stage.scale == told["scaling_factor"]
    assert settled(settled(later)) == settled(later)
    pixels: Any = settled(
        latent_run(made, run, "autoencoder", "model.first_stage={kind: pixels, scale: measured}")
    ).model
    images = torch.cat([batch.image_BCHW.float() / 127.5 - 1 for batch in first_rows(run)])
    assert pixels.first_stage.scale == pytest.approx(1 / float(images.std()), rel=2e-3)


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_diffusers_opens_it_and_says_the_same(
    name: str, place: Any, text: Text, tmp_path: Path
) -> None:
    run, task = place(name)
    out = tmp_path / "out"
    autoencoder.require(run)
    autoencoder.write(out, run, task, text, {"steps": 3})
    batch = next(iter(first_rows(run)))
    if name == "kl":  # a clean process imports for ten seconds: once
        proof = autoencoder.prove(out, run, task, text, batch)
        assert set(proof["max_difference"]) == {"mean", "logvar", "image"}
    else:
        from diptych.finetune.clean_process import keep_probe
        from diptych.finetune.trained_stage import said

        image = batch.image_BCHW[:2].float() / 127.5 - 1
        named = {f"out.{key}": value for key, value in said(run, task, image).items()}
        keep_probe(out, {"in.image": image, **named})
        check(out)
    config = json.loads((out / "config.json").read_text())
    assert config["scaling_factor"] not in (0.18215, 1.0)
    assert "scaling_factor" in (out / "README.md").read_text()
    config["norm_num_groups"] = 2
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="differs by"):
        check(out)
    with pytest.raises(ExportError, match="--to autoencoder holds first stages"):
        autoencoder.require(vlp_easy())
