"""Where which colour is: T2I-Adapter's spatial palette (Mou et al. 2023). H x W pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ...data.cache import Side
from ..hint import Hint


class Palette(Hint):
    """`palette` (3, H, W): the mean colour of each cell of a coarse grid."""

    kind: ClassVar[str] = "palette"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    channels: ClassVar[int] = 3
    cells: int = Field(default=8, ge=1)
    """Along the shorter side."""

    def draw(self, image_HWC: np.ndarray, record: Mapping[str, Any], size: Sequence[int]) -> Any:
        import cv2

        height, width = image_HWC.shape[:2]
        cell = max(1.0, min(height, width) / self.cells)
        grid = max(1, round(width / cell)), max(1, round(height / cell))
        small = cv2.resize(image_HWC, grid, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
