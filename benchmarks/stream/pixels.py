"""From the bytes of a JPEG to a square of uint8, in the ways that the arms use."""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from diptych.data import decode
from diptych.data.transforms import Frame, frame

from .arm import shorter


class Shipped:
    """Pillow and torchvision's transforms, as peers' own examples do it."""

    def __init__(self, size: int) -> None:
        bicubic = v2.InterpolationMode.BICUBIC
        self._steps = v2.Compose(
            [v2.Resize(shorter(size), bicubic), v2.CenterCrop(size), v2.PILToTensor()]
        )

    def picture(self, picture: Any) -> Tensor:
        """(3, size, size) of a Pillow picture."""
        return self._steps(picture)

    def blob(self, blob: bytes) -> Tensor:
        """(3, size, size) of a JPEG."""
        return self._steps(Image.open(io.BytesIO(blob)).convert("RGB"))


class Tensors:
    """torchvision's decoder and transforms of tensors, which is what litdata's JPEG field uses."""

    def __init__(self, size: int) -> None:
        bilinear = v2.InterpolationMode.BILINEAR
        self._steps = v2.Compose(
            [v2.Resize(shorter(size), bilinear, antialias=True), v2.CenterCrop(size)]
        )

    def blob(self, blob: bytes) -> Tensor:
        """(3, size, size) of a JPEG."""
        data = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        return self._steps(decode_jpeg(data, ImageReadMode.RGB))


class Same:
    """The decoder and the crop of this project, for a peer's samples."""

    def __init__(self, size: int) -> None:
        self._frame = Frame(width=size, height=size, resize=shorter(size))

    def blob(self, blob: bytes) -> Tensor:
        """(3, size, size) of a JPEG."""
        pixels, whole = decode.image(blob, fit=self._frame.fit)
        return frame(pixels, self._frame, 0, size=whole)[0]
