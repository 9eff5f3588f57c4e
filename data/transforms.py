"""Pixels as the model wants them: a square of uint8, cut out of the middle."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def square(image: Image.Image, size: int) -> Tensor:
    """Returns (3, size, size) uint8: the shorter side resized (bicubic, antialiased), then cropped.

    An image that is `size` x `size` already passes through untouched.
    """
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
