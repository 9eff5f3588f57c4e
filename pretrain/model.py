"""What a model is: a record that builds a module which turns a view into what objectives read."""

from typing import Any, ClassVar

from pydantic import Field

from ..config import Part
from .objective import Seen, Sizes, Words


class Model(Part):
    """A record of a model's sizes. `build` makes the module: `module(view) -> gives`."""

    gives: ClassVar[type] = Seen
    """What its module returns: `Seen`, or `Denoised`."""
    image_size: int = Field(default=64, ge=8)
    """Height and width of the images, in pixels."""
    tokens: int = Field(default=16, ge=4)
    """Text length, special tokens included; longer texts are cut."""

    @property
    def any_size(self) -> bool:
        """Whether images may be of other sizes than a square of `image_size`."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """Which of `text` and `image` every sample must have."""
        return frozenset({"text", "image"})

    def build(self, words: Words) -> Any:
        """The module, freshly initialised from torch's global generator.

        Its `words` is its word embedding. A frozen part must not be one of its submodules: all
        that they hold is trained and kept in checkpoints.
        """
        raise NotImplementedError(f"model {self.kind!r} has no build")

    def sizes(self, words: Words) -> Sizes:
        """What the heads of objectives must fit."""
        raise NotImplementedError(f"model {self.kind!r} has no sizes")
