"""A batch again: all that the task was given, and honest about what it is not given now."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diptych.cluster import ledger
from diptych.cluster.replay import replay
from diptych.config import plain
from diptych.data import cache, holes, precompute, storage
from diptych.data.index import Manifest
from diptych.data.loader import Loader
from diptych.data.pack import Sample
from diptych.data.tokens import Text
from diptych.finetune.parts import KINDS
from diptych.pretrain.charts import open_plan
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]
Opened = Callable[..., tuple[Run, RunDir]]


@pytest.fixture
def opened(text: Text, tmp_path: Path) -> Opened:
    """`opened(data, model, objective)`: a run that has begun, of batches of 8 rows."""

    def make(
        data: dict[str, object], model: dict[str, object], objective: str
    ) -> tuple[Run, RunDir]:
        values = plain(vlp_easy())
        values |= {"model": {"tokens": 12, "width": 16, "depth": 1, "heads": 2, **model}}
        values |= {"objectives": [{"kind": objective}], "batch": 8, "steps": 10}
        values["data"] = {"tokenizer": "tokenizer.json", **data}
        run, place = revise(values, [], KINDS, source="small"), RunDir(str(tmp_path / "runs/r"))
        place.create(run, {"data": open_plan(run).data})
        storage.write(place.at("tokenizer.json"), text.tokenizer.to_str().encode())
        ledger.begin(place, 0, 2)
        return run, place

    return make


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array.astype(np.float32))
    return file.getvalue()


def test_a_replay_has_the_arrays_and_names_what_is_in_quarantine_now(
    samples: Samples, dataset: Dataset, opened: Opened, text: Text, tmp_path: Path
) -> None:
    some, made = samples(24), np.random.default_rng(0)
    for _, members in some:
        members |= {f"{name}.npy": npy(made.random((3, 4))) for name in ("features", "boxes")}
    source = dataset([some])
    regions = {"kind": "regions", "count": 4, "values": 4, "geometry": 4}
    model = {"kind": "single_stream", "visual": regions}
    run, place = opened({"train": source.url}, model, "mlm")
    plan = open_plan(run)
    [(_, batch)] = list(Loader(plan, text, run.rows, start=3, stop=4))
    told = replay(place, 3, tmp_path / "out")
    found = load_file(tmp_path / "out/batch.safetensors")
    assert {name for name in found if "." in name} == {"arrays.features", "arrays.boxes"}
    for name, array in batch.arrays.items():
        assert torch.equal(found[f"arrays.{name}"], array)
    assert told["pictures"] == "images.png"
    shard, key = batch.keys[2].split("/")
    holes.quarantine(source, shard, key, "loss spike")
    assert replay(place, 3, tmp_path / "again")["left out"] == 1
    rows = json.loads((tmp_path / "again/rows.json").read_text())
    said = {row["key"]: row["hole"] for row in rows if "hole" in row}
    assert said == {key: "in quarantine: loss spike"}


def test_a_replay_of_a_cache_has_its_latents_and_the_shards_pictures(
    samples: Samples, dataset: Dataset, opened: Opened, text: Text, tmp_path: Path
) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from diptych.pretrain.encoders import Autoencoder

    vae, kept, kind = str(tmp_path / "vae"), str(tmp_path / "latents"), AutoencoderKL
    kind(block_out_channels=(8,), latent_channels=4, norm_num_groups=4).save_pretrained(vae)
    source, encoder = dataset([samples(20)]), Autoencoder(weights=vae)
    spec = encoder.spec(sizes=[(8, 8)], dtype="float32")
    precompute.precompute(source, encoder.open(), spec, kept)
    stage = {"kind": "autoencoder", "weights": vae, "downsampling": 1}
    model = {"kind": "dit", "image_size": 8, "first_stage": stage}
    run, place = opened({"train": source.url, "caches": [kept]}, model, "ddpm")
    plan = open_plan(run)
    [(_, batch)] = list(Loader(plan, text, run.rows, start=3, stop=4, joined=run.joined(plan)))
    told = replay(place, 3, tmp_path / "out")
    found = load_file(tmp_path / "out/batch.safetensors")
    assert torch.equal(found["arrays.latent"], batch.arrays["latent"])
    assert torch.equal(found["image_BCHW"], batch.image_BCHW)
    assert told["pictures"] == "images.png, of the shards"
    with Image.open(tmp_path / "out/images.png") as sheet:
        assert np.asarray(sheet).reshape(-1, 3).mean() < 200, "white: no pictures"
    assert cache.open_cache(kept, source).note.kept
    Path(storage.local_path(source.shards[0].url)).unlink()
    assert replay(place, 3, tmp_path / "bare")["pictures"].startswith("none: ")
    assert not (tmp_path / "bare/images.png").exists()
