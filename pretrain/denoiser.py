"""What all denoisers share: the first stage whose latents they work on, and the sizes they take."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from .encoder import Encoder
from .first_stage import AnyFirstStage, FirstStage
from .first_stages import Pixels
from .frozen import Frozen
from .model import Model
from .objective import Denoised, Sizes, Words


class Denoiser(Model):
    """A record of a network that is told how noised a latent is, and of what text."""

    gives: ClassVar[type] = Denoised
    first_stage: AnyFirstStage = Pixels()
    """What turns images into the latents that are noised."""
    width: int = Field(default=128, ge=8)
    """Of the text states."""
    text_depth: int = Field(default=1, ge=0)
    """Blocks of the text encoder, which is trained too."""

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
        return {"first_stage": self.first_stage} if self.first_stage.places else {}

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        encoder = self.first_stage.encoder
        return {encoder.kind: encoder} if encoder else {}

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

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.width, vocabulary=words.size)
