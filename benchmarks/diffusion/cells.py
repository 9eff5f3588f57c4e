"""What is drawn and judged: one cell is one gallery of one checkpoint with one way of sampling."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.data import index
from diptych.finetune import exhibit
from diptych.finetune.appraise import Panel, appraise
from diptych.finetune.exhibit import Hung
from diptych.finetune.judge import Network, Question
from diptych.finetune.sample import grid, painter, write_png
from diptych.finetune.score import Finished, finished
from diptych.finetune.start import Weights
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.rundir import RunDir

from . import sets
from .runs import CLASSIFIER, MAIN, OTHERS, Sizes

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
LENGTHS = (5, 10, 25, 50, 100)
ETAS = (0.0, 1.0)


@dataclass(frozen=True)
class Cell:
    """A gallery; see `Sampling`."""

    run: str
    step: int
    weights: Weights = "ema"
    scale: float = 3.0
    steps: int = 25
    eta: float = 0.0
    samples: int = 192
    far: bool = False
    """Whether distances to real images are taken, too."""

    @property
    def name(self) -> str:
        """Of its row."""
        how = f"s{self.scale:g}-n{self.steps}-eta{self.eta:g}-{self.samples}"
        return f"{self.run}-{self.step}-{self.weights}-{how}"

    @property
    def how(self) -> Sampling:
        """How it is drawn."""
        return Sampling(steps=self.steps, guidance_scale=self.scale, eta=self.eta)


@dataclass(frozen=True)
class Plan:
    """The tables of the report, each a list of cells; a cell may stand in several."""

    sizes: Sizes
    samples: int

    def one(self, run: str = MAIN, **changes: Any) -> Cell:
        """The usual cell of a run, changed."""
        last = self.sizes.steps if run == MAIN else self.sizes.others
        return replace(Cell(run, last, samples=self.samples), **changes)

    @property
    def headline(self) -> Cell:
        """What the goals are held against: four times as many samples."""
        return self.one(samples=4 * self.samples, far=True)

    @property
    def guidance(self) -> list[Cell]:
        """The guidance sweep."""
        return [self.one(scale=scale, far=True) for scale in SCALES]

    @property
    def lengths(self) -> list[Cell]:
        """DDIM with few steps and many, without noise between them and with DDPM's."""
        return [
            self.one(steps=steps, eta=eta, far=(steps, eta) == (25, 0))
            for eta in ETAS
            for steps in LENGTHS
        ]

    @property
    def training(self) -> list[Cell]:
        """EMA against raw weights while it is trained."""
        every, last = self.sizes.every, self.sizes.steps
        at = sorted(
            {every, self.sizes.others, (self.sizes.others + last) // 2 // every * every, last}
        )
        return [
            self.one(step=step, weights=weights, far=(step, weights) == (last, "ema"))
            for weights in ("ema", "raw")
            for step in at
        ]

    @property
    def dropout(self) -> list[Cell]:
        """Caption dropout against none, without guidance and with, at equal steps."""
        return [
            self.one(run, step=self.sizes.others, scale=scale)
            for run in (MAIN, "easy-no-drop")
            for scale in (1.0, 3.0)
        ]

    @property
    def targets(self) -> list[Cell]:
        """v, epsilon and flow at equal steps."""
        runs = (MAIN, *(run for run in OTHERS if run != "easy-no-drop"))
        return [self.one(run, step=self.sizes.others) for run in runs]

    def all(self) -> Iterator[Cell]:
        """Every cell once, what matters most first."""
        parts = [self.headline], self.guidance, self.lengths, self.dropout, self.targets
        yield from dict.fromkeys(cell for part in (*parts, self.training) for cell in part)


@dataclass(frozen=True)
class Judges:
    """Who looks at every gallery."""

    classifier: Finished
    network: Network
    """Of the distances."""

    def run(self, cell: Cell, runs: Path) -> dict[str, Any]:
        """Draws a gallery, or goes on with it, and judges it."""
        found = finished(RunDir(str(runs / cell.run)), step=cell.step, weights=cell.weights)
        hung = Hung(prompts=found.test.url, samples=cell.samples, how=cell.how)
        url = exhibit.place(found, hung)
        asked = exhibit.prompts(hung, found.run.data.text)
        for number in exhibit.missing(hung, url):
            exhibit.draw(found, hung, asked, url, number)
        exhibit.seal(hung, url)
        panel = Panel(
            networks=[self.network] if cell.far else [],
            classifier=self.classifier,
            questions=[Question(text, field) for text, field in sets.ASKED.items()],
            losses=0,
        )
        return {"name": cell.name, **appraise(found, hung, url, panel)}


def judges(home: Path, runs: Path, network: Network) -> Judges:
    """The classifier, held against the test images, and the network of the distances."""
    test = index.open_manifest(str(home / "test")).url
    return Judges(finished(RunDir(str(runs / CLASSIFIER)), data=test), network)


def sheets(plan: Plan, runs: Path, out: Path) -> dict[str, Path]:
    """Grids of the same prompts from the same noise: name -> file; made once."""
    every = [f"a {color} {shape}" for shape in sets.SHAPES for color in sets.COLORS]
    few = [f"a {c} {s}" for c, s in zip(sets.COLORS, 3 * sets.SHAPES, strict=False)]
    rows = {
        "prompts": [(plan.headline, every)],
        "guidance": [(cell, few) for cell in plan.guidance],
        "steps": [(cell, few) for cell in plan.lengths],
    }
    return {name: _sheet(cells, runs, out / f"{name}.png") for name, cells in rows.items()}


def _sheet(cells: list[tuple[Cell, list[str]]], runs: Path, file: Path) -> Path:
    if file.exists():
        return file
    images = []
    for cell, prompts in cells:
        brush = painter(RunDir(str(runs / cell.run)), weights=cell.weights, step=cell.step)
        images += list(brush.draw(prompts, cell.how))
    import torch

    write_png(grid(torch.stack(images), columns=len(sets.COLORS)), file)
    return file
