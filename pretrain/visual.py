"""What the visual side of a model is: a record that builds a module from images to regions.

B rows, N regions, F values of a feature, D width.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import Tensor

from ..config import Part, kinds, pick
from .encoder import Encoder


class Visual(Part):
    """A record of one way to see. `build(width, image_size)` makes `module(view) -> regions_BND`.

    The module adds what tells regions apart (places, boxes) and a mark to hidden ones.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What of a sample it looks at; see `Model.needs`."""
        return frozenset({"image"})

    @property
    def arrays(self) -> Mapping[str, tuple[int, int]]:
        """See `Model.arrays`."""
        return {}

    @property
    def eye(self) -> Encoder | None:
        """See `Model.eye`."""
        return None

    def look(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """See `Model.look`."""
        return None

    def check(self, image_size: int) -> None:
        """Raises ValueError where an image of that size cannot be seen so."""

    def regions(self, image_size: int) -> int:
        """Regions of an image, hidden ones included."""
        raise NotImplementedError(f"visual {self.kind!r} has no regions")

    def region_values(self, image_size: int) -> int:
        """See `Sizes.region_values`."""
        raise NotImplementedError(f"visual {self.kind!r} has no region_values")

    def begin(self, module: Any, image_size: int) -> None:
        """Puts the weights that it begins with, if it names any, into a module of `build`."""

    def build(self, width: int, image_size: int, epsilon: float) -> Any:
        """The module, freshly initialised."""
        raise NotImplementedError(f"visual {self.kind!r} has no build")


def _pick(value: Any) -> Any:
    from . import visuals  # which import this file

    return pick(value, kinds(visuals), "visual")


AnyVisual = Annotated[Visual, BeforeValidator(_pick)]
"""A field of a record that takes any of the visuals."""
