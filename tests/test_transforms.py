import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from diptych.data.transforms import square


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (33, 47), (7, 9), (300, 200), (32, 32)])
def test_a_square_is_what_torchvision_makes_of_it(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    found = square(image, 32)
    assert (found.shape, found.dtype) == ((3, 32, 32), torch.uint8)
    torchvision = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), PILToTensor()])
    expected = torch.as_tensor(torchvision(image))
    assert (found.int() - expected.int()).abs().float().mean() < 6  # half a pixel; elsewhere 30


def test_a_square_of_the_right_size_is_untouched() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    assert (square(image, 32).permute(1, 2, 0).numpy() == noise).all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 2)])
def test_a_hairline_is_not_resized_to_gigapixels(size: tuple[int, int]) -> None:
    found = square(Image.new("RGB", size, (9, 8, 7)), 224)
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]
