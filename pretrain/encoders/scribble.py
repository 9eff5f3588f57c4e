"""Scribbles: few thick strokes without strength, as a person draws them. H x W pixels.

ControlNet thins soft edges, blurs and thresholds them; here the lines are Canny's of a blurred
image, of which the short ones are left out and the rest is thickened.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ...data.cache import Side
from ..hint import Hint, grayed


class Scribble(Hint):
    """`scribble` (1, H, W), 255 on strokes."""

    kind: ClassVar[str] = "scribble"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    channels: ClassVar[int] = 1
    sigma: float = Field(default=2.0, gt=0)
    """Pixels, standard deviation of a blur before: details below are left out."""
    shortest: int = Field(default=12, ge=1)
    """Pixels of a line; shorter ones are left out."""
    thickness: int = Field(default=3, ge=1)
    """Pixels."""

    def draw(self, image_HWC: np.ndarray, record: Mapping[str, Any], size: Sequence[int]) -> Any:
        import cv2

        smooth = cv2.GaussianBlur(grayed(image_HWC), (0, 0), self.sigma)
        lines_HW = cv2.Canny(smooth, 20, 50)
        count, label_HW, stats, _ = cv2.connectedComponentsWithStats(lines_HW, connectivity=8)
        long = np.flatnonzero(stats[:count, cv2.CC_STAT_AREA] >= self.shortest)
        kept_HW = 255 * (np.isin(label_HW, long) & (np.asarray(label_HW) > 0)).astype(np.uint8)
        pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (self.thickness, self.thickness))
        return cv2.dilate(kept_HW, pen)
