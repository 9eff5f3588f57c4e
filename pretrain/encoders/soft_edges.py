"""Soft edges: strength and not only place, as a pencil draws them. H x W pixels.

What HED (Xie and Tu 2015) is for ControlNet; here without a network, by the gradient alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ...data.cache import Side
from ..hint import Hint, grayed, sketched


class SoftEdges(Hint):
    """`soft_edges` (1, H, W), 255 the steepest edges of an image."""

    kind: ClassVar[str] = "soft_edges"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    channels: ClassVar[int] = 1
    sigma: float = Field(default=1.0, ge=0)
    """Pixels, standard deviation of a blur before."""

    def draw(self, image_HWC: np.ndarray, record: Mapping[str, Any], size: Sequence[int]) -> Any:
        return np.rint(255 * sketched(grayed(image_HWC), self.sigma))
