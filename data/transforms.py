"""Pixels as the model wants them: uint8 of one size, resized to cover it, cropped, perhaps flipped.

Crop and flip are a function of the sample's draw alone, so no process, worker or order changes
them. H, W are an image's own height and width.
"""

from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..config import Record
from . import draws

_HAIRLINE = 64
"""Sides longer than so many frames are cut first, or a hairline would be resized to gigapixels."""

_TINY = 1e-9
"""What rounding may do to a scale."""


class Pixels(Record):
    """What is done to images, whatever frame they are put into."""

    resize: int | None = Field(default=None, ge=1)
    """Pixels of the shorter side before the crop; by default, and at least, what the frame needs.
    Images that have it already are only cropped."""
    crop: Literal["center", "random"] = "center"
    """What to keep of the longer side."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left and right."""
    exact: bool = False
    """Decode JPEGs in full and resize, instead of decoding them straight to the scale needed."""


class Frame(Pixels):
    """How an image becomes a row of a batch."""

    width: int = Field(ge=1)
    """Pixels."""
    height: int = Field(ge=1)
    """Pixels."""

    @property
    def fit(self) -> tuple[int, int]:
        """(width, height) that the resized image covers; for `decode.image`."""
        return max(self.width, self.resize or 0), max(self.height, self.resize or 0)


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
    at: Placed | None = None,
) -> tuple[Tensor, Placed]:
    """Returns (3, height, width) uint8 and where it was cut from.

    The image is resized to cover the frame, or to `resize` (bicubic, antialiased), then cropped.
    One that has the frame's size already passes through untouched.

    Args:
        pixels: (H, W, 3) uint8.
        frame: what is wanted.
        draw: the sample's `draws.row_key`.
        out: (3, height, width) uint8 to write into; a new one by default.
        size: (width, height) of the whole image where `pixels` were decoded at a smaller scale.
        at: where another image of this size was cut, to cut this one alike, whatever its draw.
    """
    if out is None:
        out = torch.empty((3, frame.height, frame.width), dtype=torch.uint8)
    return out, put(pixels, frame, draw, out.numpy(), size=size, at=at)


def put(
    pixels: np.ndarray,
    frame: Frame,
    draw: int,
    out_CHW: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    at: Placed | None = None,
) -> Placed:
    """`frame` into memory that is there already: (3, height, width) uint8."""
    whole = size or (pixels.shape[1], pixels.shape[0])
    resized_HWC, width, height = _covering(pixels, whole, frame)
    at = at or Placed(
        *whole,
        left=_kept(width - frame.width, frame, draw, "crop left"),
        top=_kept(height - frame.height, frame, draw, "crop top"),
        flipped=_flipped(frame, draw),
    )
    row_HWC = resized_HWC[at.top : at.top + frame.height, at.left : at.left + frame.width]
    if out_CHW.shape != (3, *row_HWC.shape[:2]):  # OpenCV would write elsewhere, and say nothing
        raise ValueError(f"a row of {out_CHW.shape} for pixels of {row_HWC.shape}")
    # Without gaps first, which a flip leaves none of: OpenCV splits a view in ten times the time.
    row_HWC = cv2.flip(row_HWC, 1) if at.flipped else np.ascontiguousarray(row_HWC)
    # By OpenCV, in a fifth of NumPy's time. torch would wake a team of threads for a copy, which
    # loaders' threads fight over.
    cv2.split(row_HWC, list(out_CHW))
    return at


def placing(size: tuple[int, int], frame: Frame, draw: int) -> Placed:
    """Where `frame` cuts an image of this size, without its pixels.

    Args:
        size: (width, height) of the whole image.
        frame: what is wanted.
        draw: the sample's `draws.row_key`.
    """
    width, height, scale = _scale(size, frame)
    return Placed(
        *size,
        left=_kept(width * scale - frame.width, frame, draw, "crop left"),
        top=_kept(height * scale - frame.height, frame, draw, "crop top"),
        flipped=_flipped(frame, draw),
    )


def told(placed: Placed, frame: Frame) -> tuple[float, ...]:
    """What a model is told of a row: `Batch.placed_B6`. Of a mirrored row the crop is mirrored."""
    across, _ = covered((placed.width, placed.height), frame)
    left = max(0, across - frame.width - placed.left) if placed.flipped else placed.left
    return (placed.height, placed.width, placed.top, left, frame.height, frame.width)


def cover(pixels: np.ndarray, frame: Frame, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """(3, H, W) uint8: what `frame` with the same arguments cuts its row from."""
    whole = size or (pixels.shape[1], pixels.shape[0])
    return _covering(pixels, whole, frame)[0].transpose(2, 0, 1)


def covered(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """(width, height) of what `cover` gives of an image of this size, to within a pixel."""
    width, height, scale = _scale(size, frame)
    return int(width * scale * (1 + _TINY)), int(height * scale * (1 + _TINY))


def _scale(size: tuple[int, int], frame: Frame) -> tuple[int, int, float]:
    """(width, height) without what makes a hairline of it, and what they are multiplied by."""
    width = min(size[0], max(1, _HAIRLINE * size[1] * frame.width // frame.height))
    height = min(size[1], max(1, _HAIRLINE * size[0] * frame.height // frame.width))
    scale = max(
        frame.width / width, frame.height / height, (frame.resize or 0) / min(width, height)
    )
    return width, height, scale


def _covering(
    pixels: np.ndarray, whole: tuple[int, int], frame: Frame
) -> tuple[np.ndarray, float, float]:
    """The image resized to cover the frame, or to `resize`, and its width and height unrounded."""
    reduced = _reduction(whole, pixels)
    pixels = _without_hairline(pixels, frame)
    width = min(whole[0], reduced * pixels.shape[1])
    height = min(whole[1], reduced * pixels.shape[0])
    scale = max(
        frame.width / width, frame.height / height, (frame.resize or 0) / min(width, height)
    )
    return _resized(pixels, scale * reduced), width * scale, height * scale


def _without_hairline(pixels: np.ndarray, frame: Frame) -> np.ndarray:
    """The middle of an image that is extremely long or high; any other as it is."""
    height, width = pixels.shape[:2]
    most_wide = max(1, _HAIRLINE * height * frame.width // frame.height)
    most_high = max(1, _HAIRLINE * width * frame.height // frame.width)
    if width <= most_wide and height <= most_high:
        return pixels
    left, top = max(0, width - most_wide) // 2, max(0, height - most_high) // 2
    return pixels[top : top + most_high, left : left + most_wide]


def _reduction(whole: tuple[int, int], pixels: np.ndarray) -> int:
    """By how much an image was reduced as it was decoded.

    Raises:
        ValueError: these cannot be its pixels.
    """
    height, width = pixels.shape[:2]
    for by in (1, 2, 4, 8):
        if (-(-whole[0] // by), -(-whole[1] // by)) == (width, height):
            return by
    raise ValueError(f"{width} x {height} pixels are no reduction of {whole[0]} x {whole[1]}")


def _resized(pixels: np.ndarray, scale: float) -> np.ndarray:
    """(height, width, 3): bicubic and antialiased, as Pillow does it to within 2 of 255.

    Both sides are scaled alike, the longer one not to a whole number of pixels: so the odd last
    column of an image leaves all others where they are, at whatever scale it was decoded.
    """
    if abs(scale - 1) < _TINY:
        return pixels
    pixels_BCHW = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)
    return (
        functional.interpolate(
            pixels_BCHW, scale_factor=scale * (1 + _TINY), mode="bicubic", antialias=True
        )[0]
        .permute(1, 2, 0)
        .numpy()
    )


def _flipped(frame: Frame, draw: int) -> bool:
    return frame.flip > 0 and _uniform(draw, "flip") < frame.flip


def _kept(spare: float, frame: Frame, draw: int, purpose: str) -> int:
    """Where the kept part of a side begins, of `spare` pixels too many."""
    most = int(spare * (1 + _TINY))
    return int(_uniform(draw, purpose) * (most + 1)) if frame.crop == "random" else most // 2


def _uniform(draw: int, purpose: str) -> float:
    return (draws.row_key(draw, purpose) >> 10) * 2.0**-53  # all a float holds; never 1
