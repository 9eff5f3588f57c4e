"""Images from a finished run: opened without test data, drawn, written as PNG files and a grid."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data import storage, tokens
from ..data.tokens import Text
from ..pretrain.checkpoint import open_checkpoint, steps
from ..pretrain.diffusion.generate import NOTHING, Change, Given, generate
from ..pretrain.diffusion.sampling import Sampling
from ..pretrain.objective import Denoised
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.task import Task
from .parts import KINDS
from .start import Weights, kept, trained_task


@dataclass(frozen=True)
class Painter:
    """A run's task with the weights of a checkpoint, in evaluation mode."""

    place: RunDir
    run: Run
    text: Text
    task: Task
    step: int
    weights: Weights

    def draw(
        self,
        prompts: Sequence[str],
        how: Sampling | None = None,
        *,
        first: int = 0,
        change: Change = lambda view: view,
        given: Given = NOTHING,
        told: Callable[[int], None] = lambda looks: None,
    ) -> Tensor:
        """uint8 images (B, H, W, 3); see `generate`."""
        task, text = self.task, self.text
        return generate(
            task, text, prompts, how, first=first, change=change, given=given, told=told
        )


def painter(place: RunDir, *, weights: Weights | None = None, step: int | None = None) -> Painter:
    """Opens a run to draw from; its newest checkpoint, unless a step is named.

    Raises:
        RunError: it is no run.
        CheckpointError: nothing was kept yet, or not at that step, or no average.
    """
    run = place.recipe(KINDS)
    text = tokens.load(place.at("tokenizer.json"), run.model.tokens)
    checkpoint = open_checkpoint(place.url, step)
    task = trained_task(run, text, checkpoint, weights)
    if torch.cuda.is_available():
        task = task.cuda()
    return Painter(place, run, text, task, checkpoint.step, kept(checkpoint, weights))


def grid(images_BHWC: Tensor, columns: int | None = None, border: int = 2) -> Tensor:
    """One image (H, W, 3) of many, row by row, black between them; a lone one as it is. So does
    torchvision's `make_grid`."""
    if len(images_BHWC) == 1:
        return images_BHWC[0]
    count, height, width, _ = images_BHWC.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    shape = (rows * (height + border) + border, columns * (width + border) + border, 3)
    sheet = torch.zeros(shape, dtype=torch.uint8)
    for number, image_HWC in enumerate(images_BHWC):
        row, column = divmod(number, columns)
        top, left = border + row * (height + border), border + column * (width + border)
        sheet[top : top + height, left : left + width] = image_HWC
    return sheet


def png(image_HWC: Tensor) -> bytes:
    """A PNG file of one image, uint8."""
    file = io.BytesIO()
    Image.fromarray(image_HWC.numpy()).save(file, "PNG")
    return file.getvalue()


def write_png(image_HWC: Tensor, path: Path) -> None:
    """Writes one image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(image_HWC))


def write(images_BHWC: Tensor, out: Path, first: int = 0) -> list[Path]:
    """Writes `00000.png`, ... and `grid.png` into a folder; returns the paths, the grid last."""
    paths = [out / f"{first + number:05d}.png" for number in range(len(images_BHWC))]
    for image_HWC, path in zip(images_BHWC, paths, strict=True):
        write_png(image_HWC, path)
    write_png(grid(images_BHWC), out / "grid.png")
    return [*paths, out / "grid.png"]


def named(prompt: str) -> str:
    """A prompt as a file's name: letters, digits and dashes, 60 at most."""
    return re.sub(r"[^\w]+", "-", prompt).strip("-")[:60] or "no-prompt"


def newest(runs: str) -> str | None:
    """The URL of the run of a denoiser below a folder that kept a checkpoint last, if any."""
    found: list[tuple[str, str]] = []
    for child in storage.children(runs):
        place = RunDir(storage.join(runs, child))
        if not storage.exists(place.at("recipe.yaml")) or not steps(place.url):
            continue
        if place.recipe(KINDS).model.gives is Denoised:
            found.append((str(place.json("run.json").get("made", "")), place.url))
    return max(found)[1] if found else None
