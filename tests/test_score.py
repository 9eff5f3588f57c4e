"""A finished run against its test data."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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
