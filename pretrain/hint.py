"""A hint: a picture drawn from a picture, or from its annotations, that steers a denoiser.

It is an encoder without weights, so that `diptych data precompute` fills caches of it, and its rows
are as large as the picture that they belong to, so that one crop and one flip fit both. H x W
pixels, C channels.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor

from ..config import kinds, pick
from ..errors import RecipeError
from .encoder import Apply, Encoder, Rows


class Hint(Encoder):
    """A record of how a hint is drawn. A cache calls its rows by the hint's kind."""

    whole: ClassVar[bool] = True
    channels: ClassVar[int]

    @property
    def places(self) -> dict[str, str]:
        return {}

    def draw(self, image_HWC: np.ndarray, record: Mapping[str, Any], size: Sequence[int]) -> Any:
        """(H, W, channels) uint8; 0 where there is nothing.

        Args:
            image_HWC: uint8 RGB.
            record: the sample's JSON record; empty for hints that read the image alone.
            size: (width, height) of the whole image that the record speaks of.

        Raises:
            RecipeError: the record has not what it draws.
        """
        raise NotImplementedError(f"hint {self.kind!r} has no draw")

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            records = [json.loads(text) for text in texts] or [{} for _ in images_BCHW]
            pictures = images_BCHW.permute(0, 2, 3, 1).cpu().numpy()
            drawn = [
                self.drawn(picture, told.get("record", {}), told.get("size"))
                for picture, told in zip(pictures, records, strict=True)
            ]
            return {self.kind: [torch.from_numpy(one) for one in drawn]}

        return apply

    def drawn(
        self,
        image_HWC: np.ndarray,
        record: Mapping[str, Any] | None = None,
        size: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(channels, H, W) uint8 of one image; see `draw`."""
        height, width = image_HWC.shape[:2]
        image_HWC = np.ascontiguousarray(image_HWC)
        found = np.asarray(self.draw(image_HWC, record or {}, size or (width, height)))
        found = found.reshape(height, width, self.channels)
        return np.ascontiguousarray(found.transpose(2, 0, 1).astype(np.uint8))

    def live(self, image_BCHW: Tensor) -> Tensor:
        """(B, channels, H, W) uint8 of rows that are cut already.

        Raises:
            RecipeError: it reads annotations, which speak of whole images.
        """
        if self.reads != ("image",):
            raise RecipeError(
                f"the hint {self.kind!r} is drawn from annotations of whole pictures. Make a cache "
                f"of it (diptych data precompute ... --encoder {self.kind}) and name it in "
                f"data.hints.{self.kind}."
            )
        pictures = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        rows = [torch.from_numpy(self.drawn(picture)) for picture in pictures]
        return torch.stack(rows).to(image_BCHW.device)


def _pick_hint(value: Any) -> Any:
    from . import encoders  # which import this file

    hints = {kind: part for kind, part in kinds(encoders).items() if issubclass(part, Hint)}
    return pick(value, hints, "hint")


AnyHint = Annotated[Hint, BeforeValidator(_pick_hint)]
"""A field of a record that takes any of the hints."""


def sketched(gray_HW: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how steep the brightness is, 1 the steepest 0.5 % of an image.

    The gradient by Scharr's kernels after a blur of `sigma` pixels; images of one colour have none.
    """
    import cv2  # imports for a while

    smooth = gray_HW.astype(np.float32)
    if sigma:
        smooth = cv2.GaussianBlur(smooth, (0, 0), sigma)
    across, down = cv2.Scharr(smooth, cv2.CV_32F, 1, 0), cv2.Scharr(smooth, cv2.CV_32F, 0, 1)
    steep = np.hypot(across, down)
    most = max(float(np.quantile(steep, 0.995)), 32.0)  # below is noise, which stays faint
    return np.clip(steep / most, 0, 1).astype(np.float32)


def grayed(image_HWC: np.ndarray) -> np.ndarray:
    """(H, W) uint8 luminance."""
    import cv2

    return cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
