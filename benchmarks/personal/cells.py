"""What is run: one cell is a subject or a hint, a method and a seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SUBJECTS = {
    "dog7": ("golden retriever", "dog5", "n02099601_"),
    "dog8": ("german shepherd", "dog3", "n02106662_"),
    "cat": ("tabby cat", None, "n02123045_"),
}
"""Subject of the data set -> (class as the base's captions have it, a stranger of that class, how
keys of the base's own photos of the class begin).

Of its twenty subjects these are all whose classes t2i_tiny20 knows, but for other dogs."""
SEEDS = (0, 1, 2)
Settings = Mapping[str, Any]


def _lora(rank: int, **other: Any) -> dict[str, Any]:
    return {"adapter": {"kind": "lora", "rank": rank}, "lr": LORA, **other}


FULL, LORA, TOKENS = 6e-5, 2e-3, 2e-2
"""Learning rates; see `asides` and docs/LOG.md of 2026-11-26 for what was tried."""
METHODS: dict[str, Settings] = {
    "full, prior": {"lr": FULL},
    "full, no prior": {"lr": FULL, "prior_loss_weight": 0.0},
    "full, real prior": {"lr": FULL, "real": True},
    "lora 4": _lora(4),
    "tokens": {"adapter": {"kind": "tokens"}, "lr": TOKENS},
    "lora 4, no prior": _lora(4, prior_loss_weight=0.0),
    "lora 1": _lora(1),
    "lora 16": _lora(16),
}
ASIDES: dict[str, Settings] = {
    "full, class guided": {"lr": FULL, "class_guidance": 3.0},
    "full, zoomed": {"lr": FULL, "zoom": 1.125},
    "full, guided and zoomed": {"lr": FULL, "class_guidance": 3.0, "zoom": 1.125},
    "full, captions dropped": {"lr": FULL, "set": ("objectives.0.drop=0.1",)},
    "full 3e-4": {"lr": 3e-4},
    "lora 4, 8e-3": {"adapter": {"kind": "lora", "rank": 4}, "lr": 8e-3},
    "tokens 1e-1": {"adapter": {"kind": "tokens"}, "lr": 1e-1},
}
"""How class pictures are drawn, and learning rates; on one subject."""
CONTROLS: dict[str, Settings] = {
    "controlnet": {"kind": "controlnet"},
    "t2i_adapter": {"kind": "t2i_adapter"},
    "controlnet, not zero": {"kind": "controlnet", "zero": False},
    "controlnet, no copy": {"kind": "controlnet", "copy_base": False},
    "t2i_adapter, palette": {"kind": "t2i_adapter", "hint": {"kind": "palette", "cells": 4}},
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    subject: str
    """Of the data set; empty for controls."""
    seed: int
    settings: Settings
    """Of `Wishes`, where `real` stands for a prior of the base's own photos of the class; or of a
    control's record."""

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = [self.subject, self.method.replace(", ", "-").replace(" ", "-"), str(self.seed)]
        return "-".join(filter(None, parts))


def dreambooth() -> Iterator[Cell]:
    """Every seed, method and subject; one seed after the other, the five methods that the claims
    are about before the rest of them, so that a part of the cells already compares methods."""
    for seed in SEEDS:
        for methods in (list(METHODS.items())[:5], list(METHODS.items())[5:]):
            for subject in SUBJECTS:
                yield from (Cell(method, subject, seed, asked) for method, asked in methods)


def asides() -> Iterator[Cell]:
    """What the settings of the methods were chosen by, on one subject."""
    for method, settings in ASIDES.items():
        yield Cell(method, next(iter(SUBJECTS)), 0, settings)


def controls() -> Iterator[Cell]:
    """Every seed and control."""
    for seed in SEEDS:
        for method, settings in CONTROLS.items():
            yield Cell(method, "", seed, settings)
