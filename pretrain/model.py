"""What a model is: a record that builds a module which turns a view into what objectives read."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from ..config import Part
from ..data.transforms import Pixels
from .encoder import Encoder
from .first_stage import FirstStage
from .frozen import Frozen
from .objective import Denoised, Objective, Seen, Sizes, Words


class Model(Part):
    """A record of a model's sizes. `build` makes the module: `module(view) -> gives`."""

    gives: ClassVar[type] = Seen
    """What its module returns: `Seen`, `Denoised` or `Classified`."""
    image_size: int = Field(default=64, ge=8)
    """Height and width of the images, in pixels."""
    tokens: int = Field(default=16, ge=4)
    """Text length, special tokens included; longer texts are cut."""

    @property
    def any_size(self) -> bool:
        """Whether images may be of other sizes than a square of `image_size`."""
        return False

    @property
    def multiple(self) -> int:
        """Pixels that width and height of an image must be a multiple of, where any size does."""
        return 1

    @property
    def stage(self) -> FirstStage | None:
        """What makes latents of the images before anything else sees them; None for pixels."""
        return None

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        """Its parts with weights of their own that are never trained, by name."""
        return {"eye": self.eye} if self.eye and self.eye.places else {}

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """By kind, those whose cached outputs can stand for images or texts."""
        return {self.eye.kind: self.eye} if self.eye else {}

    @property
    def eye(self) -> Encoder | None:
        """A frozen encoder whose `regions` it sees of a picture, live or from a cache."""
        return None

    @property
    def needs(self) -> frozenset[str]:
        """Which of `text` and `image` every sample must have."""
        return frozenset({"text", "image"})

    @property
    def regions(self) -> int:
        """Regions of an image, hidden ones included."""
        raise NotImplementedError(f"model {self.kind!r} has no regions")

    @property
    def parts(self) -> Mapping[str, str]:
        """Its parts that adapters may be put on: of each, what its modules' names begin with, as
        a regular expression."""
        if self.gives is Denoised:
            return {"denoiser": r"(?!(words|context)\b)", "text": r"(words|context)\b"}
        return {"transformer": ""}

    @property
    def arrays(self) -> Mapping[str, tuple[int, int]]:
        """.npy members of a sample that it reads, each (regions, width)."""
        return {}

    def look(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """(features (B, N, F), boxes (B, N, 4)) among a batch's arrays, for models of regions."""
        return None

    def build(self, words: Words) -> Any:
        """The module, freshly initialised from torch's global generator.

        Its `words` is its word embedding. A frozen part must not be one of its submodules: all
        that they hold is trained and kept in checkpoints.
        """
        raise NotImplementedError(f"model {self.kind!r} has no build")

    def begin(self, module: Any) -> None:
        """Puts the weights that its parts begin with, if the record names any, into a fresh module
        of `build`."""

    def sizes(self, words: Words) -> Sizes:
        """What the heads of objectives must fit."""
        raise NotImplementedError(f"model {self.kind!r} has no sizes")


def require_in_place(model: Model, objectives: Sequence[Objective], pixels: Pixels) -> None:
    """Raises ValueError where pictures are cut or flipped in which an objective learns places."""
    placing = [objective.kind for objective in objectives if objective.places]
    moved = {
        "flip": pixels.flip > 0,
        "crop": pixels.crop != "center",
        "resize": (pixels.resize or 0) > model.image_size,
    }
    names = [name for name, moves in moved.items() if moves]
    if placing and names and "image" in model.needs:
        raise ValueError(
            f"{placing[0]}: boxes are shares of the whole picture, which data.pixels.{names[0]}="
            f"{getattr(pixels, names[0])} would move; leave it as it is by default"
        )
