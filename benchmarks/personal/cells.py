"""What is run: one cell is one `diptych finetune` of a subject or a hint, a method and a seed."""

from collections.abc import Iterator
from dataclasses import dataclass

SUBJECTS = {
    "dog2": ("golden retriever", "dog6"),
    "cat2": ("tabby cat", "cat"),
    "teapot": ("teapot", None),
}
"""Subject of the data set -> (class as the base's captions have it, a stranger of that class)."""
SEEDS = (0, 1, 2)
METHODS: dict[str, tuple[str, ...]] = {
    "full, prior": ("--adapter", "full"),
    "full, no prior": ("--adapter", "full", "--prior", "0"),
    "lora 1": ("--adapter", "lora", "--rank", "1", "--lr", "2e-3"),
    "lora 4": ("--adapter", "lora", "--rank", "4", "--lr", "2e-3"),
    "lora 16": ("--adapter", "lora", "--rank", "16", "--lr", "2e-3"),
    "lora 4, no prior": ("--adapter", "lora", "--rank", "4", "--lr", "2e-3", "--prior", "0"),
    "tokens": ("--adapter", "tokens", "--lr", "2e-2"),
}
CONTROLS: dict[str, tuple[str, ...]] = {
    "controlnet": ("--kind", "controlnet"),
    "controlnet, not zero": ("--kind", "controlnet", "--set", "control.zero=false"),
    "controlnet, no copy": ("--kind", "controlnet", "--set", "control.copy_base=false"),
    "t2i_adapter": ("--kind", "t2i_adapter"),
    "t2i_adapter, palette": ("--kind", "t2i_adapter", "--hint", "palette,cells=4"),
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str
    """Of its folder."""
    method: str
    subject: str
    """Of the data set; empty for controls."""
    seed: int
    words: tuple[str, ...]
    """The command line after `diptych`."""


def dreambooth(tar: str, base: str, home: str, steps: int) -> Iterator[Cell]:
    """Every subject, seed and method; the seeds of one method come last, so that a part of them
    already compares methods."""
    for seed in SEEDS:
        for subject, (word, _) in SUBJECTS.items():
            for method, options in METHODS.items():
                name = f"{subject}-{method}-{seed}".replace(", ", "-").replace(" ", "-")
                words = ("finetune", "dreambooth", tar, "--only", f"{subject}/")
                words += ("--class-word", word, "--prompt", "{identifier} {word}")
                words += ("--base", base, "--run", f"{home}/{name}", "--seed", str(seed))
                words += ("--steps", str(steps), "--looks", "4", "--class-images", "64", *options)
                yield Cell(name, method, subject, seed, words)


def controls(data: str, base: str, home: str, steps: int) -> Iterator[Cell]:
    """Every control and seed."""
    for seed in SEEDS:
        for method, options in CONTROLS.items():
            name = f"{method}-{seed}".replace(", ", "-").replace(" ", "-")
            words = ("finetune", "control", data, "--base", base, "--run", f"{home}/{name}")
            words += ("--seed", str(seed), "--steps", str(steps), "--looks", "8", *options)
            yield Cell(name, method, "", seed, words)
