"""Canny's edges (1986), the first hint of ControlNet and of T2I-Adapter. H x W pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from ...data.cache import Side
from ..hint import Hint, grayed


class Canny(Hint):
    """`canny` (1, H, W), 255 on edges. OpenCV's, on luminance."""

    kind: ClassVar[str] = "canny"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    channels: ClassVar[int] = 1
    low: float = Field(default=100, ge=0)
    """Weaker edges than `high` count where they go on from a stronger one."""
    high: float = Field(default=200, gt=0)
    blur: float = Field(default=0.0, ge=0)
    """Pixels, standard deviation of a blur before."""

    @model_validator(mode="after")
    def _sound(self) -> "Canny":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def draw(self, image_HWC: np.ndarray, record: Mapping[str, Any], size: Sequence[int]) -> Any:
        import cv2

        gray_HW = grayed(image_HWC)
        if self.blur:
            gray_HW = cv2.GaussianBlur(gray_HW, (0, 0), self.blur)
        return cv2.Canny(gray_HW, self.low, self.high)
