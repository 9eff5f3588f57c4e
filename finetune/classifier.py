"""A classifier of noised images beside a denoiser: opened, checked, its gradient taken.

N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import unknown
from ..data.batch import Batch
from ..errors import RecipeError
from ..pretrain.checkpoint import open_checkpoint
from ..pretrain.diffusion.generate import NOTHING, Given, denoiser
from ..pretrain.diffusion.guidance import classifier_gradient
from ..pretrain.diffusion.sampling import Pull
from ..pretrain.first_stage import FirstStage
from ..pretrain.models import NoisyClassifier
from ..pretrain.objectives import DenoisingDiffusion, NoisedClass
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.task import Task
from .parts import KINDS
from .sample import Painter
from .start import Weights, trained_task


class Classifier:
    """A finished classifier that fits a denoiser; a function of (x, time from 0 to 1000)."""

    def __init__(self, task: Task, classes: tuple[str, ...], rows: Batch) -> None:
        self.task, self.classes, self._rows = task, classes, rows

    def __call__(self, x: Tensor, time_B: Tensor) -> Tensor:
        """Logits (B, K) of scaled latents that are noised so much."""
        anchor = self.task.anchor
        row = self._rows.to(x.device)
        view = self.task.view(row.pick(torch.zeros(len(x), dtype=torch.long)), x.to(anchor))
        return self.task.model(replace(view, time_B=time_B)).logits_BC.float()

    def number(self, name: str) -> int:
        """Of a class by its name.

        Raises:
            RecipeError: there is none of that name.
        """
        if name not in self.classes:
            raise unknown(name, list(self.classes), "class of the classifier")
        return self.classes.index(name)

    def given(self, names: Sequence[str], scale: float, given: Given = NOTHING) -> Given:
        """What images of such classes are pulled by, besides what else is given.

        Args:
            names: of the class of each image.
            scale: s of s grad log p(y | x_t).
            given: the rest.
        """
        classes_N = torch.tensor([self.number(name) for name in names])

        def pull(first: int, last: int) -> Pull:
            return classifier_gradient(
                self, classes_N[first:last].to(self.task.anchor.device), scale
            )

        return replace(given, pull=pull)


def open_classifier(
    place: RunDir, base: Painter, *, weights: Weights | None = None, step: int | None = None
) -> Classifier:
    """A finished classifier beside a denoiser; its newest checkpoint, unless a step is named.

    Raises:
        RecipeError: the run trained no such classifier, or of other latents or another schedule.
        CheckpointError: nothing was kept yet.
    """
    run = place.recipe(KINDS)
    if not isinstance(run.model, NoisyClassifier):
        raise RecipeError(
            f"{place.url} is a run of model {run.model.kind!r}. Name one of noisy_classifier, such "
            "as `diptych train classifier_tiny` makes."
        )
    _require_same_noise(place, run, base)
    _require_same_latents(place, run.model.first_stage, base)
    task = trained_task(run, base.text, open_checkpoint(place.url, step), weights)
    task.requires_grad_(False)
    tokens_BL, real_BL = base.text.encode([""])
    none = Batch(
        keys=("",),
        draws_B=torch.zeros(1, dtype=torch.long),
        image_BCHW=torch.empty((1, 3, 0, 0), dtype=torch.uint8),
        tokens_BL=tokens_BL,
        real_BL=real_BL,
        fields=({"cls": 0},),
        texts=("",),
    )
    return Classifier(task.to(base.task.anchor.device), run.model.classes, none)


def _require_same_noise(place: RunDir, run: Run, base: Painter) -> None:
    theirs, ours = run.objectives[0], base.run.objectives[0]
    if not isinstance(ours, DenoisingDiffusion) or not isinstance(theirs, NoisedClass):
        raise RecipeError(
            f"{place.url} knows images noised as by ddpm; {base.place.name} was trained with "
            f"{ours.kind!r}."
        )
    if theirs.schedule != ours.schedule:
        raise RecipeError(
            f"{place.url} was trained with the schedule {theirs.schedule}, {base.place.name} with "
            f"{ours.schedule}. Train the classifier with --set objectives.0.schedule=... of the "
            "denoiser."
        )


def _require_same_latents(place: RunDir, theirs: FirstStage, base: Painter) -> None:
    ours = denoiser(base.task).first_stage
    same = theirs == ours or (theirs.kind == ours.kind and theirs.digest() == ours.digest())
    if not same:
        raise RecipeError(
            f"{place.url} sees latents of {theirs.kind} ({', '.join(theirs.places.values())}), "
            f"{base.place.name} draws those of {ours.kind} ({', '.join(ours.places.values())}). "
            "Both must have the same first stage and scale."
        )
