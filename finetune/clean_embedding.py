"""Loads embeddings of textual inversion as a stranger would: with diffusers and transformers alone.

`python -I clean_embedding.py FOLDER` has `load_textual_inversion` put each file's word into a
tokenizer and a CLIP text encoder of its width, looks the vector up by the word's id in a sentence,
and writes proof.json. Run by path, since it must import nothing of Diptych.
"""

import hashlib
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")


def check(out: Path) -> dict[str, float]:
    """The largest difference of each word's vector from the stored one.

    Raises:
        SystemExit: a vector is not the one that is stored.
    """
    found: dict[str, float] = {}
    for file in sorted(out.glob("*.safetensors")):
        ((word, vector_D),) = load_file(file).items()
        words = ["<pad>", "<unk>", "a", "photo", "of"]
        tokenizer = _tokenizer(words)
        config = transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=len(vector_D), num_hidden_layers=1,
            num_attention_heads=1, intermediate_size=8, max_position_embeddings=16,
        )  # fmt: skip
        encoder = transformers.CLIPTextModel(config)
        pipe = _pipe(tokenizer, encoder)
        pipe.load_textual_inversion(str(file), token=word)
        ids = tokenizer(f"a photo of {word}").input_ids
        vectors = encoder.get_input_embeddings().weight
        found[word] = float((vectors[ids[-1]] - vector_D).abs().max())
        if len(ids) != 4 or found[word] != 0.0:
            sys.exit(f"{file}: {word!r} became {ids} with a vector {found[word]:.3g} apart.")
    return found


def _tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>"
    )


def _pipe(tokenizer: Any, encoder: Any) -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=4, cross_attention_dim=8,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main(out: Path) -> None:
    """Checks the folder and keeps what was found."""
    found = check(out)
    files = [f for f in sorted(out.rglob("*")) if f.is_file() and f.name != "proof.json"]
    proof = {
        "loader": "diffusers.load_textual_inversion",
        "version": diffusers.__version__,
        "max_difference": found,
        "tolerance": 0.0,
        "sha256": {
            str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files
        },
        "torch": torch.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
