"""Boxes and polygons of a sample's annotations, each kind of thing in its own colour.

The JSON record has a list of objects: plain boxes, or objects in the form of COCO (`bbox` as x, y,
width, height, or `box` as left, top, right, bottom; `segmentation` polygons; `label`, `category` or
`category_id`). H x W pixels.
"""

import colorsys
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from ...data.cache import Side
from ...errors import RecipeError
from ..hint import Hint

_NAMES = ("label", "category", "category_name", "category_id", "class")
_FAR = 1e6
"""Pixels; what lies further out wraps around in OpenCV's whole numbers."""


class Layout(Hint):
    """`layout` (3, H, W): later objects over earlier ones, black where there is none."""

    kind: ClassVar[str] = "layout"
    reads: ClassVar[tuple[Side, ...]] = ("image", "record")
    channels: ClassVar[int] = 3
    field: str = "objects"
    """Where the list of objects stands in the record."""
    boxes: Literal["xyxy", "xywh"] = "xyxy"
    """Of boxes that are plain lists."""
    units: Literal["pixels", "shares"] = "pixels"
    """Of the whole image, or shares of its sides from 0 to 1."""
    outline: int = Field(default=0, ge=0)
    """Pixels; 0 fills."""

    def draw(self, image_HWC: np.ndarray, record: Mapping[str, Any], size: Sequence[int]) -> Any:
        import cv2

        objects = record.get(self.field)
        if not isinstance(objects, list):
            raise RecipeError(
                f"the record has no list {self.field!r}; it has {', '.join(sorted(record))}. "
                "Name the list: --set field=..."
            )
        height, width = image_HWC.shape[:2]
        whole = (1, 1) if self.units == "shares" else size
        scale = np.array([width / whole[0], height / whole[1]])
        drawn = np.zeros((height, width, 3), np.uint8)
        for thing in objects:
            for corners_K2 in self._outlines(thing):
                points = np.rint(corners_K2 * scale).clip(-_FAR, _FAR).astype(np.int32)
                if self.outline:
                    cv2.polylines(drawn, [points], True, _colour(thing), self.outline)
                else:
                    cv2.fillPoly(drawn, [points], _colour(thing))
        return drawn

    def _outlines(self, thing: Any) -> list[np.ndarray]:
        """Corners (K, 2) of each part of an object."""
        try:
            if not isinstance(thing, Mapping):
                return [_corners(thing, self.boxes)]
            parts = thing.get("segmentation")
            if isinstance(parts, list) and parts:  # empty beside a box: nobody drew an outline
                return [_checked(np.array(part, float).reshape(-1, 2)) for part in parts]
            if "box" in thing:
                return [_corners(thing["box"], "xyxy")]
            return [_corners(thing["bbox"], "xywh")]
        except (KeyError, TypeError, ValueError) as err:
            raise RecipeError(
                f"{str(thing)[:80]!r} in {self.field!r} is no box of four numbers and no object "
                f"with `box`, `bbox` or `segmentation`: {err!r}."
            ) from err


def _corners(box: Any, form: str) -> np.ndarray:
    left, top, right, bottom = (float(value) for value in box)
    if form == "xywh":
        right, bottom = left + right, top + bottom
    return _checked(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))


def _checked(corners_K2: np.ndarray) -> np.ndarray:
    if not len(corners_K2) or not np.isfinite(corners_K2).all():
        raise ValueError("no corners, or one that is no finite number")
    return corners_K2


def _colour(thing: Any) -> tuple[int, int, int]:
    """A bright colour that depends on the name of the kind of thing alone."""
    named = thing if isinstance(thing, Mapping) else {}
    name = next((str(named[key]) for key in _NAMES if key in named), "")
    mark = hashlib.blake2b(name.encode(), digest_size=3).digest()
    bright = colorsys.hsv_to_rgb(mark[0] / 256, 0.5 + mark[1] / 512, 0.75 + mark[2] / 1024)
    return tuple(int(255 * part) for part in bright)  # type: ignore[return-value]
