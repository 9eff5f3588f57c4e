"""What a model is: a record that builds a module which turns a view into one encoder pass."""

from typing import Any

from pydantic import Field

from ..config import Part
from .objective import Sizes, Words


class Model(Part):
    """A record of a model's sizes. `build` makes the module: `module(view) -> Seen`."""

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
        """The module, freshly initialised from torch's global generator."""
        raise NotImplementedError(f"model {self.kind!r} has no build")

    def sizes(self, words: Words) -> Sizes:
        """What the heads of objectives must fit."""
        raise NotImplementedError(f"model {self.kind!r} has no sizes")
