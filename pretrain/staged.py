"""What all models of noised latents share: the first stage, sizes, and classes by name."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from ..errors import RecipeError
from .encoder import Encoder
from .first_stage import AnyFirstStage, FirstStage
from .first_stages import Pixels
from .frozen import Frozen
from .model import Model


class Staged(Model):
    """A record of a model that sees images as the latents of a first stage."""

    first_stage: AnyFirstStage = Pixels()
    """What turns images into the latents that are noised."""
    classes: tuple[str, ...] = ()
    """Names of the classes that `.cls` members number; a text without one that is such a name is
    of that class, in training as in drawing."""

    @property
    def cell(self) -> int:
        """Cells of a latent a side that its width and height must be a multiple of."""
        raise NotImplementedError(f"model {self.kind!r} has no cell")

    @property
    def multiple(self) -> int:
        """Pixels that width and height of an image must be a multiple of."""
        return self.cell * self.first_stage.factor

    @property
    def stage(self) -> FirstStage:
        return self.first_stage

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        return {"first_stage": self.first_stage} if self.first_stage.places else {}

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        encoder = self.first_stage.encoder
        return {encoder.kind: encoder} if encoder else {}

    @property
    def any_size(self) -> bool:
        return True

    @model_validator(mode="after")
    def _whole_cells(self) -> "Staged":
        if self.image_size % self.multiple:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.multiple}: the first "
                f"stage's {self.first_stage.factor} times {self.cell} of {self.kind!r}"
            )
        return self

    def class_of(self, fields: Mapping[str, Any], key: str, text: str = "") -> int:
        """The number of a sample's class; that of none, len(classes), where it has none.

        Raises:
            RecipeError: there are not so many.
        """
        if "cls" not in fields and text in self.classes:
            return self.classes.index(text)
        number = fields.get("cls", len(self.classes))
        if not isinstance(number, int) or not 0 <= number <= len(self.classes):
            raise RecipeError(
                f"{key} is of class {number!r}; model.classes names {len(self.classes)}, numbered "
                "from 0. List them all."
            )
        return number
