"""A finished run against its test data."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.data.index import Manifest
from diptych.data.loader import once
from diptych.data.tokens import Text
from diptych.finetune.score import Finished
from diptych.pretrain.run import Run


def _noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("pixels", ["flip=1.0", "crop=random"])
def test_pictures_of_a_test_are_cut_in_the_middle_and_never_flipped(
    pixels: str, dataset: Callable[..., Manifest], small: Callable[..., Run], text: Text
) -> None:
    shard = [(f"{n:03d}", {"png": _noise(n), "txt": b"a picture"}) for n in range(4)]
    manifest, run = dataset([shard]), small(f"data.pixels.{pixels}")
    nowhere: Any = None  # no folder and no checkpoint
    found = Finished(nowhere, run, text, nowhere, "raw", run.task(text), manifest.url)
    [batch], [plain] = found.batches(), once(manifest, text, small().rows)
    [trained] = once(manifest, text, run.rows)
    assert torch.equal(batch.image_BCHW, plain.image_BCHW)
    assert not torch.equal(trained.image_BCHW, plain.image_BCHW)


def test_an_objective_without_a_target_has_nothing_to_judge(
    dataset: Callable[..., Manifest], small: Callable[..., Run], text: Text, keep: Any
) -> None:
    run = small("objectives=[{kind: mlm}, {kind: vqa, answers: [cat, dog]}]")
    place = keep(run, run.task(text), text)
    for fields, idle in (
        ({"note": "?"}, "vqa: no sample has a target of it"),
        ({"answer": "cat"}, None),
    ):
        members = {"txt": b"a picture", "json": json.dumps(fields).encode()}
        shard = [(f"{n:03d}", {"png": _noise(n), **members}) for n in range(4)]
        url = dataset([shard], str(idle)[:3]).url
        words = ["evaluate", place.url, "--data", url, "--json"]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert json.loads(done.stdout).get("nothing to judge") == idle
