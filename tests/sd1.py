"""Small stand-ins for Stable Diffusion 1: CLIP's text encoder with its tokenizer, and one file."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diptych.finetune import original


def clip_folder(home: Path, width: int, tokens: int = 12) -> Any:
    """A text encoder of transformers with a byte-level BPE of single letters beside it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    home.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (home / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (home / "merges.txt").write_text("#version: 0.2\n")
    (home / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": tokens,
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )
    torch.manual_seed(2)
    made = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=1,
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=tokens,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    )
    made.save_pretrained(home)
    return made


def file_of(path: Path, unet: Any, vae: Any, clip: Any) -> None:
    """All three by CompVis' names in one file, as Stable Diffusion 1 was published."""
    levels = len(vae.config.block_out_channels)
    naming = original.unet_naming(unet.config)
    save_file(
        {
            **original.to_original(unet.state_dict(), naming, original.UNET),
            **original.to_original(
                vae.state_dict(), original.autoencoder_naming(levels), original.FIRST
            ),
            **original.to_original(clip.state_dict(), original.text_naming, original.TEXT),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(3),
            "model_ema.decay": torch.tensor(0.9),
        },
        path,
    )
