"""What all arms of `make bench-diffusion` share: photos, frozen networks, a recipe."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from diptych.data import index, storage, tokens
from diptych.data.pack import Sample, pack, scattered
from diptych.data.precompute import precompute
from diptych.finetune.parts import KINDS
from diptych.pretrain.encoders import Autoencoder
from diptych.pretrain.run import Run, parse_run

SIDE = 256
"""Pixels."""
WIDTH, TOKENS = 128, 16
"""Of the text states."""


@dataclass(frozen=True)
class Material:
    """Folders below `home`."""

    home: Path

    @property
    def photos(self) -> Path:
        """Indexed tars of JPEGs with captions."""
        return self.home / "photos"

    @property
    def files(self) -> Path:
        """The same as files, with `captions.json`."""
        return self.home / "files"

    @property
    def latents(self) -> Path:
        """A cache of the first stage's mean and log-variance."""
        return self.home / "latents"

    @property
    def vae(self) -> Path:
        """A KL autoencoder with Stable Diffusion's shape, an eighth as wide."""
        return self.home / "vae"

    @property
    def clip(self) -> Path:
        """A text encoder of transformers with its tokenizer."""
        return self.home / "clip"

    @property
    def tokenizer(self) -> Path:
        """Of our stream; the frozen encoder has its own."""
        return self.home / "tokenizer.json"

    def prepare(self, source: Path) -> None:
        """Makes what is not there; `source` is a tar of photos in folders named after what they
        show."""
        if not (self.photos / "index" / "manifest.json").exists():
            drawn = list(_photos(source))
            self.files.mkdir(parents=True, exist_ok=True)
            for key, members in drawn:
                (self.files / f"{key}.jpg").write_bytes(members["jpg"])
            captions = {f"{key}.jpg": members["txt"].decode() for key, members in drawn}
            (self.files / "captions.json").write_text(json.dumps(captions))
            storage.write(str(self.tokenizer), tokens.learn(captions.values(), 400).encode())
            index.build(pack(scattered(drawn), str(self.photos), per_shard=64))
        if not self.vae.exists():
            _vae(self.vae)
        if not self.clip.exists():
            _clip(self.clip)
        encoder = Autoencoder(weights=str(self.vae))
        spec = encoder.spec(sizes=((SIDE, SIDE),))
        precompute(index.open_manifest(str(self.photos)), encoder.open(), spec, str(self.latents))

    def bytes(self) -> tuple[int, int]:
        """(of the JPEGs, of the latents' tars)."""
        return (
            sum(file.stat().st_size for file in self.files.glob("*.jpg")),
            sum(file.stat().st_size for file in self.latents.rglob("*.tar")),
        )

    def recipe(self, batch: int, *, cached: bool) -> Run:
        """A latent U-Net with frozen texts; epsilon, no dropped captions, a moving average."""
        encoder = {"kind": "text", "weights": str(self.clip), "tokens": TOKENS, "padded": True}
        values = {
            "name": "bench",
            "model": {
                "kind": "unet",
                "image_size": SIDE,
                "tokens": TOKENS,
                "channels": [64, 128],
                "heads": 4,
                "width": WIDTH,
                "texts": [{"encoder": encoder, "width": WIDTH}],
                "first_stage": {"kind": "autoencoder", "weights": str(self.vae)},
            },
            "objectives": [{"kind": "ddpm", "drop": 0.0}],
            "data": {
                "train": str(self.photos),
                "tokenizer": str(self.tokenizer),
                "caches": [str(self.latents)] if cached else [],
            },
            "optim": {"lr": 1e-5, "decay": "none", "warmup_steps": 0, "betas": [0.9, 0.999]},
            "ema": {"decay": 0.999},
            "batch": batch,
            "steps": 1_000_000,
            "checkpoint_steps": 1_000_000,
        }
        return parse_run(values, KINDS, source="bench")


def _photos(source: Path) -> Iterator[Sample]:
    with tarfile.open(source) as archive:
        for number, info in enumerate(archive):
            file = archive.extractfile(info)
            if file is None or not info.name.lower().endswith((".jpg", ".jpeg", ".png")):
                continue
            picture = ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE))
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=90)
            said = Path(info.name).parent.name.replace("_", " ") or "photo"
            yield f"{number:05d}", {"jpg": out.getvalue(), "txt": f"a {said}".encode()}


def _vae(home: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 32, 64, 64],
        "layers_per_block": 2,
        "norm_num_groups": 16,
    }
    made: Any = AutoencoderKL.from_config(settings)
    made.save_pretrained(home)


def _clip(home: Path) -> None:
    """Two layers, and a byte-pair tokenizer of single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    told |= {"bos_token": words[-2], **dict.fromkeys(("eos_token", "unk_token"), words[-1])}
    home.mkdir(parents=True)
    (home / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (home / "merges.txt").write_text("#version: 0.2\n")
    (home / "tokenizer_config.json").write_text(json.dumps(told | {"pad_token": words[-1]}))
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    CLIPTextModel(config).save_pretrained(home)
