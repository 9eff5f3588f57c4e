"""The recipes of the reproduction: a classifier, a denoiser and what that is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.config import plain
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, parse_run

from . import sets

DROP = 0.15
"""Share of the captions that are dropped."""
CLASSIFIER = "easy-classifier"
MAIN = "easy-v"
OTHERS: dict[str, dict[str, Any]] = {
    "easy-no-drop": {"kind": "ddpm", "predict": "v", "drop": 0.0},
    "easy-epsilon": {"kind": "ddpm", "predict": "epsilon", "drop": DROP},
    "easy-flow": {"kind": "flow", "drop": DROP},
}
"""What is compared at equal steps, by its run's name: the objective."""


@dataclass(frozen=True)
class Sizes:
    """How long is trained; the learning rate is constant, so that an early checkpoint of a run is
    what a shorter run would have ended with."""

    steps: int = 1600
    """Of the denoiser."""
    others: int = 600
    """Of each that it is compared with; a multiple of `every`."""
    every: int = 200
    """Steps between two checkpoints, all of which are kept."""
    classifier: int = 500


def recipes(home: Path, taef2: str, sizes: Sizes) -> list[Run]:
    """All runs, in the order in which they are trained; `home` has the data."""
    v = {"kind": "ddpm", "predict": "v", "drop": DROP}
    return [
        classifier(home, sizes),
        denoiser(home, taef2, sizes, MAIN, sizes.steps, v),
        *(denoiser(home, taef2, sizes, name, sizes.others, o) for name, o in OTHERS.items()),
    ]


def classifier(home: Path, sizes: Sizes) -> Run:
    """A VQA model that is asked for the attributes of real images."""
    values = plain(vlp_easy())
    values["model"] |= {"width": 64, "depth": 2, "heads": 4, "tokens": 8, "stem": 32, "grid": 8}
    return parse_run(
        {
            **values,
            "name": CLASSIFIER,
            "objectives": [{"kind": "vqa", "answers": [*sets.COLORS, *sets.SHAPES]}],
            "data": {
                "train": str(home / "judge-asked"),
                "test": str(home / "test-asked"),
                "tokenizer": str(home / "tokenizer.json"),
                "text": "question",
                "pixels": {"flip": 0.5},
            },
            "optim": {"lr": 1e-3, "warmup_steps": 50, "weight_decay": 0.1},
            "batch": 64,
            "steps": sizes.classifier,
            "checkpoint_steps": 100,
        },
        KINDS,
        source=CLASSIFIER,
    )


def denoiser(
    home: Path, taef2: str, sizes: Sizes, name: str, steps: int, objective: dict[str, Any]
) -> Run:
    """Text-conditional latent diffusion in TAEF2's 8 x 8 x 32 latents of 64-pixel images."""
    first_stage = {
        "kind": "taef2",
        "weights": f"{taef2}/taef2_encoder.safetensors",
        "decoder": f"{taef2}/taef2_decoder.safetensors",
    }
    return parse_run(
        {
            "name": name,
            "model": {
                "kind": "unet",
                "image_size": 64,
                "tokens": 8,
                "channels": [48, 96],
                "groups": 16,
                "heads": 4,
                "width": 96,
                "text": "clip",
                "text_depth": 1,
                "first_stage": first_stage,
            },
            "objectives": [objective],
            "data": {
                "train": str(home / "train"),
                "caches": [str(sets.latents(home))],
                "test": str(home / "test"),
                "tokenizer": str(home / "tokenizer.json"),
            },
            "optim": {"lr": 1e-3, "warmup_steps": 100, "betas": [0.9, 0.99], "decay": "none"},
            "ema": {"decay": 0.998},
            "batch": 64,
            "steps": steps,
            "log_steps": 20,
            "checkpoint_steps": sizes.every,
        },
        KINDS,
        source=name,
    )
