"""Networks whose features judge images: the numbers of the library that they come from."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diptych.errors import RecipeError
from diptych.pretrain import encoders
from diptych.pretrain.encoders import inception


def noise(rows: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, size, size), np.uint8)


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(converted weights, the pickle that they are of); random ones of the right shapes."""
    torch.manual_seed(0)
    model, home = inception.network(), tmp_path_factory.mktemp("inception")
    state = model.state_dict()
    torch.save(state, home / "published.pth")
    save_file(state, home / "inception.safetensors")
    return home / "inception.safetensors", home / "published.pth"


def test_inception_is_torch_fidelitys(
    standard: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights, origin = standard
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], str(origin))
    with open(origin, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    monkeypatch.setattr(inception, "_ORIGIN", found[:8])  # the published file is not at hand
    encoder = encoders.Inception(weights=str(weights), origin=str(origin)).open()
    said = np.stack(encoder.encode(noise(2), None)["features"])
    expected = theirs(torch.from_numpy(noise(2)))[0]
    np.testing.assert_array_equal(said, expected.numpy())


def test_other_weights_are_not_called_standard(standard: tuple[Path, Path], tmp_path: Path) -> None:
    weights, origin = standard
    with pytest.raises(RecipeError, match=r"SHA-256 begins with \w{8}, that of .*6726825d"):
        encoders.Inception(weights=str(weights), origin=str(origin)).open()
    state = {"fc.weight": torch.full((9, 3), 0.123)}
    assert list(inception.missing(state, origin)) == ["fc.weight"]


def test_clip_is_open_clips(tmp_path: Path) -> None:
    import open_clip

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "size": 16}
    torch.manual_seed(0)
    model: Any = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    encoder = encoders.Clip(weights=str(tmp_path)).open()
    texts = ["a teal triangle", "a dog"]
    found = encoder.encode(noise(2, 16), texts)
    mean, std = (torch.tensor(preprocess[name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        image_BD = model.encode_image((torch.from_numpy(noise(2, 16)) / 255 - mean) / std)
        text_BD = model.encode_text(open_clip.tokenize(texts))
    for name, value in (("features", image_BD), ("text", text_BD)):
        value = torch.nn.functional.normalize(value, dim=1)
        np.testing.assert_allclose(np.stack(found[name]), value.numpy(), atol=1e-6)
    assert set(encoder.encode(None, texts)) == {"text"}
