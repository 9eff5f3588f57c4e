"""What all denoisers share: the first stage whose latents they work on, and the sizes they take."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..errors import RecipeError
from .diffusion.context import FrozenContext
from .encoder import Encoder
from .first_stage import AnyFirstStage, FirstStage
from .first_stages import Pixels
from .frozen import Frozen
from .model import Model
from .objective import Denoised, Sizes, View, Words
from .reader import FrozenText


class Denoiser(Model):
    """A record of a network that is told how noised a latent is, and of what text."""

    gives: ClassVar[type] = Denoised
    first_stage: AnyFirstStage = Pixels()
    """What turns images into the latents that are noised."""
    width: int = Field(default=128, ge=8)
    """Of the text states."""
    text_depth: int = Field(default=1, ge=0)
    """Blocks of the text encoder, which is trained too."""

    texts: tuple[FrozenText, ...] = ()
    """Frozen text encoders in place of its own; their states stand end to end."""

    classes: tuple[str, ...] = ()
    """Names of the classes that `.cls` members number; they are told beside the text. A prompt that
    is one of these names draws its class."""

    @property
    def cell(self) -> int:
        """Cells of a latent a side that its width and height must be a multiple of."""
        raise NotImplementedError(f"denoiser {self.kind!r} has no cell")

    @property
    def multiple(self) -> int:
        """Pixels that width and height of an image must be a multiple of."""
        return self.cell * self.first_stage.factor

    @property
    def stage(self) -> FirstStage:
        return self.first_stage

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        stage = {"first_stage": self.first_stage} if self.first_stage.places else {}
        return {**stage, **{f"text.{n}": text.encoder for n, text in enumerate(self.texts)}}

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        encoder = self.first_stage.encoder
        alone = self.texts if len(self.texts) == 1 else ()
        found = [*([encoder] if encoder else []), *(text.encoder for text in alone)]
        return {each.kind: each for each in found}

    @property
    def any_size(self) -> bool:
        return True

    @model_validator(mode="after")
    def _whole_cells(self) -> "Denoiser":
        if self.image_size % self.multiple:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.multiple}: the first "
                f"stage's {self.first_stage.factor} times {self.cell} of {self.kind!r}"
            )
        return self

    def frozen_context(self) -> FrozenContext:
        """What puts the states of its frozen encoders into one sequence."""
        widths, weights = zip(*((text.width, text.weight) for text in self.texts), strict=True)
        return FrozenContext(widths, weights, self.width)

    def class_of(self, fields: Mapping[str, Any], key: str) -> int:
        """The number of a sample's class; that of none, len(classes), where it has none.

        Raises:
            RecipeError: there are not so many.
        """
        number = fields.get("cls", len(self.classes))
        if not isinstance(number, int) or not 0 <= number <= len(self.classes):
            raise RecipeError(
                f"{key} is of class {number!r}; model.classes names {len(self.classes)}, numbered "
                "from 0. List them all."
            )
        return number

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.width, vocabulary=words.size)


def read_context(module: Any, view: View) -> tuple[Tensor, Tensor]:
    """(states (B, L, D), which are real (B, L)) of what steers a denoiser with such parts."""
    if view.contexts:
        return module.context(view.contexts)
    return module.context(module.words(view.tokens_BL), view.real_BL), view.real_BL


def told_classes(view: View, classes: int) -> Tensor | None:
    """Numbers of the rows' classes, `classes` for none; None where the model is not told any."""
    if not classes:
        return None
    if view.classes_B is None:
        return torch.full((len(view.image_BCHW),), classes, device=view.image_BCHW.device)
    return torch.where(view.classes_B < 0, classes, view.classes_B)
