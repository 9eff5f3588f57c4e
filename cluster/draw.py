"""`sample`: images of a run's own, as PNG files and a grid."""

from pathlib import Path
from typing import Any

from ..data.verbs import bar
from ..finetune.sample import grid, painter, write, write_png
from ..finetune.start import Weights
from ..pretrain.diffusion.generate import looks
from ..pretrain.diffusion.sampling import Sampling
from .jobs import find


def draw(
    run: str,
    runs: str,
    prompts: list[str],
    n: int,
    how: Sampling,
    *,
    out: Path | None,
    weights: Weights | None,
    step: int | None,
) -> tuple[dict[str, Any], str]:
    """Draws `n` images of each prompt; returns (what came of it, the folder)."""
    found = painter(find(run, runs), weights=weights, step=step)
    each = [text for text in prompts for _ in range(n)]
    with bar("sample", looks(how, len(each))) as told:
        images = found.draw(each, how, told=told)
    folder = out or Path("samples") / found.place.name
    paths = write(images, folder)
    write_png(grid(images, columns=n if len(prompts) > 1 else None), paths[-1])
    facts = {"images": len(images), "step": found.step, "weights": found.weights}
    return {**facts, "grid": str(paths[-1])}, str(folder)
