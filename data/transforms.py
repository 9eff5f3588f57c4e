"""Pixels as the model wants them: uint8 of one size, resized to cover it, cropped, perhaps flipped.

Crop and flip are a function of the sample's draw alone, so no process, worker or order changes
them. H, W are an image's own height and width.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..config import Record
from . import draws

_HAIRLINE = 64
"""Sides longer than so many frames are cut first, or a hairline would be resized to gigapixels."""


class Frame(Record):
    """How an image becomes a row of a batch."""

    width: int = Field(ge=1)
    """Pixels."""
    height: int = Field(ge=1)
    """Pixels."""
    crop: Literal["center", "random"] = "center"
    """What to keep of the longer side."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left and right."""
    exact: bool = False
    """Decode JPEGs in full and resize, instead of decoding them straight to the scale needed."""


class Placed(NamedTuple):
    """Where a row was cut from, as micro-conditioning wants it."""

    width: int
    """Pixels of the whole upright image, before any resizing."""
    height: int
    left: int
    """Pixels cut off at the left of the resized image, before any flip."""
    top: int
    flipped: bool


def frame(
    pixels: np.ndarray,
    frame: Frame,
    draw: int,
    out: Tensor | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, Placed]:
    """Returns (3, height, width) uint8 and where it was cut from.

    The image is resized to cover the frame (bicubic, antialiased), then cropped. One that has the
    frame's size already passes through untouched.

    Args:
        pixels: (H, W, 3) uint8.
        frame: what is wanted.
        draw: the sample's `draws.row_key`.
        out: (3, height, width) uint8 to write into; a new one by default.
        size: (width, height) of the whole image where `pixels` were decoded at a smaller scale.
    """
    whole = size or (pixels.shape[1], pixels.shape[0])
    middle = _without_hairline(pixels, frame)
    cover = _cover(*(whole if middle is pixels else middle.shape[1::-1]), frame)
    pixels_CHW = torch.from_numpy(middle).permute(2, 0, 1)
    if cover != middle.shape[1::-1]:
        pixels_CHW = functional.interpolate(
            pixels_CHW[None], cover[::-1], mode="bicubic", antialias=True
        )[0]
    left = _kept(cover[0] - frame.width, frame, draw, "crop left")
    top = _kept(cover[1] - frame.height, frame, draw, "crop top")
    cut_CHW = pixels_CHW[:, top : top + frame.height, left : left + frame.width]
    flipped = _uniform(draw, "flip") < frame.flip
    row_CHW = cut_CHW.flip(2) if flipped else cut_CHW
    return (row_CHW if out is None else out.copy_(row_CHW)), Placed(*whole, left, top, flipped)


def _without_hairline(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """The middle of an image that is extremely long or high; any other as it is."""
    height, width = pixels.shape[:2]
    most_wide = max(1, _HAIRLINE * height * frame.width // frame.height)
    most_high = max(1, _HAIRLINE * width * frame.height // frame.width)
    if width <= most_wide and height <= most_high:
        return pixels
    left, top = max(0, width - most_wide) // 2, max(0, height - most_high) // 2
    return pixels[top : top + most_high, left : left + most_wide]


def _cover(width: int, height: int, frame: Frame) -> tuple[int, int]:
    """(width, height) of the smallest resized image of the same shape that covers the frame."""
    scale = max(frame.width / width, frame.height / height)
    return max(frame.width, round(width * scale)), max(frame.height, round(height * scale))


def _kept(spare: int, frame: Frame, draw: int, purpose: str) -> int:
    """Where the kept part of a side begins, of `spare` pixels too many."""
    return int(_uniform(draw, purpose) * (spare + 1)) if frame.crop == "random" else spare // 2


def _uniform(draw: int, purpose: str) -> float:
    return (draws.row_key(draw, purpose) >> 10) * 2.0**-53  # all a float holds; never 1
