"""Sheets of samples while a run trains: every rank draws its share, rank 0 keeps them all.

Each rank draws as many images in as many passes, since at ZeRO-3 every look of the network gathers
its weights layer by layer, from all ranks. Noise is keyed by the image's number and training's own
by step and row, so that a run with sheets has the losses of one without. H x W pixels.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..data import storage
from ..data.tokens import Text
from ..finetune.sample import grid, png
from ..pretrain.diffusion.generate import generate
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from .engine import DeepSpeedEngine

Told = Callable[[int, str, str], None]
"""(steps done, `raw` or `ema`, the picture's URL)."""


class Sheets:
    """Draws a run's samples on all ranks."""

    def __init__(
        self, engine: DeepSpeedEngine, run: Run, text: Text, place: RunDir, told: Told
    ) -> None:
        self.engine, self.run, self.text = engine, run, text
        self.place, self.told = place, told

    def draw(self, done: int) -> None:
        """Draws with the weights after so many steps and, where there is one, with their average.

        Raises:
            RecipeError: the run's sampler or size do not go with its model.
        """
        self._one(done, "raw")
        if self.run.ema:
            with self.engine.averaged():
                self._one(done, "ema")

    def _one(self, done: int, name: str) -> None:
        images_NHWC = self._together()
        if self.engine.rank:
            return
        url = self.place.at("samples", f"step-{done:06d}-{name}.png")
        storage.write(url, png(grid(images_NHWC, columns=self.run.samples.n)))
        self.told(done, name, url)

    def _together(self) -> Tensor:
        """uint8 (N, H, W, 3): all images, on every rank."""
        sheet = self.run.samples
        prompts = [each for each in self.run.prompts for _ in range(sheet.n)]
        world = dist.get_world_size()
        share = -(-len(prompts) // world)
        first = self.engine.rank * share
        mine = [prompts[number % len(prompts)] for number in range(first, first + share)]
        with torch.random.fork_rng():  # whatever a library draws here
            drawn = generate(self.engine.task, self.text, mine, sheet.how, first=first)
        drawn = drawn.to(self.engine.task.anchor.device)
        parts = [torch.empty_like(drawn) for _ in range(world)]
        dist.all_gather(parts, drawn)
        return torch.cat(parts)[: len(prompts)].cpu()
