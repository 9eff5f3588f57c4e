"""Pixels as the model wants them: a square of uint8, cut out of the middle."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def square(image: Image.Image, size: int) -> Tensor:
    """Returns (3, size, size) uint8: the shorter side resized (bicubic, antialiased), then cropped.

    An image that is `size` x `size` already passes through untouched.
    """
    if image.size != (size, size):
        longest = 64 * min(image.size)  # or a hairline would be resized to gigapixels
        image = _middle(image, min(longest, image.width), min(longest, image.height))
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = _middle(image.resize((width, height), Image.Resampling.BICUBIC), size, size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
