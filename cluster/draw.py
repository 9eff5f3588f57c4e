"""`sample`: images of a run's own, as PNG files and a grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.verbs import bar
from ..finetune.guided import asked_for, guiding
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
    controls: Sequence[str] = (),
    as_is: bool = False,
) -> tuple[dict[str, Any], str]:
    """Draws `n` images of each prompt; returns (what came of it, the folder).

    `controls` steer, each `RUN=PICTURE@WEIGHT`; with `as_is` their pictures are hints already.
    """
    found = painter(find(run, runs), weights=weights, step=step)
    each = [text for text in prompts for _ in range(n)]
    side = found.run.model.image_size
    size = how.size or (side, side)
    guides = asked_for(controls, found, lambda name: find(name, runs), size, as_is=as_is)
    change = guiding(guides) if guides else lambda view: view
    with bar("sample", looks(how, len(each))) as told:
        images = found.draw(each, how, told=told, change=change)
    folder = out or Path("samples") / found.place.name
    paths = write(images, folder)
    write_png(grid(images, columns=n if len(prompts) > 1 else None), paths[-1])
    facts = {"images": len(images), "step": found.step, "weights": found.weights}
    return {**facts, "grid": str(paths[-1])}, str(folder)
