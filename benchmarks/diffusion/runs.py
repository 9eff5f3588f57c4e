"""The recipes of the reproduction: one classifier and several denoisers a set."""

from pathlib import Path
from typing import Any

from diptych.config import plain
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, parse_run

from .sets import COLORS, SHAPES, SHARED

ASKED = {
    "easy": {"what color is it?": "color", "what shape is it?": "shape"},
    "photos": {"what is it?": "label"},
}


def classifier(home: Path, name: str, answers: tuple[str, ...], steps: int) -> Run:
    """A VQA model that is asked for the attributes of real images."""
    values = plain(vlp_easy())
    values["model"] |= {"width": 64, "depth": 2, "heads": 4, "tokens": 8, "stem": 32}
    return parse_run(
        {
            **values,
            "name": f"{name}-classifier",
            "objectives": [{"kind": "vqa", "answers": list(answers)}],
            "data": {
                "train": str(home / "judge-asked"),
                "test": str(home / "test-asked"),
                "tokenizer": str(home / "tokenizer.json"),
                "text": "question",
            },
            "optim": {"lr": 1e-3, "warmup_steps": 50},
            "batch": 64,
            "steps": steps,
            "checkpoint_steps": 100,
        },
        KINDS,
        source=name,
    )


def easy_classifier(home: Path) -> Run:
    """Colours and shapes."""
    return classifier(home, "easy", (*COLORS, *SHAPES), 600)


def first_stage() -> dict[str, Any]:
    """TAEF2."""
    return {
        "kind": "taef2",
        "weights": str(SHARED / "taef2" / "taef2_encoder.safetensors"),
        "decoder": str(SHARED / "taef2" / "taef2_decoder.safetensors"),
    }


def denoiser(home: Path, name: str, steps: int, *, tokens: int = 8, **changes: Any) -> Run:
    """Text-conditional latent diffusion in TAEF2's 8 x 8 x 32 latents of 64-pixel images."""
    objective = {"kind": "ddpm", "predict": "v", "drop": 0.15} | changes.pop("objective", {})
    return parse_run(
        {
            "name": name,
            "model": {
                "kind": "unet",
                "image_size": 64,
                "tokens": tokens,
                "channels": [48, 96],
                "groups": 16,
                "heads": 4,
                "width": 96,
                "text": "clip",
                "text_depth": 1,
                "first_stage": first_stage(),
            },
            "objectives": [objective],
            "data": {
                "train": str(home / "train"),
                "caches": [str(home / "train-taef2")],
                "test": str(home / "test"),
                "tokenizer": str(home / "tokenizer.json"),
            },
            "optim": {"lr": 1e-3, "warmup_steps": 100, "betas": [0.9, 0.99], "decay": "cosine"},
            "ema": {"decay": 0.998},
            "batch": 64,
            "steps": steps,
            "log_steps": 20,
            "checkpoint_steps": 200,
            **changes,
        },
        KINDS,
        source=name,
    )
