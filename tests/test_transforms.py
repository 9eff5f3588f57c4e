import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from diptych.data import draws
from diptych.data.transforms import Frame, frame

SQUARE = Frame(width=32, height=32)


def noise(width: int, height: int) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.array(Image.fromarray(pixels))


def gradient(width: int, height: int) -> np.ndarray:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return pixels


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (33, 47), (7, 9), (300, 200), (32, 32)])
@pytest.mark.parametrize("wanted", [SQUARE, Frame(width=48, height=20), Frame(width=9, height=31)])
def test_a_row_is_what_pillow_makes_of_it(size: tuple[int, int], wanted: Frame) -> None:
    soft = Image.fromarray(noise(4, 4)).resize(size, Image.Resampling.BICUBIC)
    scale = max(wanted.width / size[0], wanted.height / size[1])
    cover = int(size[0] * scale + 1e-6), int(size[1] * scale + 1e-6)
    left, top = (cover[0] - wanted.width) // 2, (cover[1] - wanted.height) // 2
    whole = (0, 0, min(size[0], cover[0] / scale), min(size[1], cover[1] / scale))
    resized = soft.resize(cover, Image.Resampling.BICUBIC, whole)
    expected = np.asarray(resized.crop((left, top, left + wanted.width, top + wanted.height)))
    found, placed = frame(np.array(soft), wanted, 0)
    assert (found.shape, found.dtype) == ((3, wanted.height, wanted.width), torch.uint8)
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    assert placed == (*size, left, top, False)


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = noise(32, 32)
    assert (frame(pixels, SQUARE, 0)[0].permute(1, 2, 0).numpy() == pixels).all()


def test_resize_is_of_the_shorter_side_and_then_comes_the_crop() -> None:
    wanted = Frame(width=24, height=24, resize=32)
    assert wanted.fit == (32, 32)
    pixels = noise(40, 32)
    found, placed = frame(pixels, wanted, 0)
    assert (found.permute(1, 2, 0).numpy() == pixels[4:28, 8:32]).all(), "no resizing at all"
    assert placed == (40, 32, 8, 4, False)
    grown, placed = frame(noise(80, 64), wanted, 0)
    assert placed == (80, 64, 8, 4, False)
    assert grown.shape == (3, 24, 24)
    small, placed = frame(noise(20, 20), Frame(width=24, height=24, resize=8), 0)
    assert (small.shape, placed.left) == ((3, 24, 24), 0), "the frame is covered all the same"


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 2)])
@pytest.mark.parametrize("wanted", [Frame(width=224, height=224), Frame(width=2, height=300)])
def test_a_hairline_is_not_resized_to_gigapixels(size: tuple[int, int], wanted: Frame) -> None:
    hairline = np.full((size[1], size[0], 3), (9, 8, 7), np.uint8)
    found, placed = frame(hairline, wanted, 0)
    assert found.flatten(1).unique(dim=1).flatten().tolist() == [9, 8, 7]
    assert placed[:2] == size


def test_a_random_crop_is_anywhere_inside_and_says_where() -> None:
    pixels, wanted = gradient(200, 40), Frame(width=40, height=40, crop="random")
    lefts: set[int] = set()
    for number in range(400):
        row, placed = frame(pixels, wanted, draws.row_key(0, number))
        assert row[0, 0].tolist() == list(range(placed.left, placed.left + 40))
        assert placed.top == 0
        lefts.add(placed.left)
    assert (min(lefts), max(lefts)) <= (8, 160)
    assert max(lefts) >= 152
    assert len(lefts) > 120


def test_rows_and_columns_are_cut_independently() -> None:
    pixels, wanted = gradient(64, 64), Frame(width=32, height=32, crop="random")
    placed = [frame(np.tile(pixels, (1, 2, 1)), wanted, n)[1] for n in range(50)]
    assert {each.top for each in placed} == {0}
    tall = [frame(np.tile(pixels, (2, 1, 1)), wanted, n)[1].top for n in range(50)]
    assert tall != [each.left for each in placed]


def test_a_flip_mirrors_as_often_as_asked() -> None:
    pixels = gradient(32, 32)
    flipped = 0
    for draw in range(1000):
        row, placed = frame(pixels, Frame(width=32, height=32, flip=0.3), draws.row_key(draw))
        columns = row[0, 0].tolist()
        assert columns == sorted(columns, reverse=placed.flipped)
        flipped += placed.flipped
    assert 240 < flipped < 360
    always = Frame(width=32, height=32, flip=1.0)
    assert all(frame(pixels, always, draw)[1].flipped for draw in range(50))
    assert not any(frame(pixels, SQUARE, draw)[1].flipped for draw in range(50))


@given(st.integers(0, 2**63 - 1), st.sampled_from(["center", "random"]), st.floats(0, 1))
def test_a_draw_says_it_all(draw: int, crop: str, flip: float) -> None:
    wanted = Frame.model_validate({"width": 16, "height": 24, "crop": crop, "flip": flip})
    one, placed = frame(noise(50, 40), wanted, draw)
    out = torch.zeros(2, 3, 24, 16, dtype=torch.uint8)
    two, again = frame(noise(50, 40), wanted, draw, out[1])
    assert torch.equal(one, two)
    assert placed == again
    assert torch.equal(out[1], one)
    assert not out[0].any()


@pytest.mark.parametrize("by", [2, 4, 8])
def test_pixels_stay_in_place_at_every_scale_of_decoding(by: int) -> None:
    size = (397, 199)  # both odd: the last column and row are padded
    whole = np.asarray(Image.fromarray(noise(12, 6)).resize(size, Image.Resampling.BICUBIC))
    padded = np.pad(whole, ((0, -size[1] % by), (0, -size[0] % by), (0, 0)), mode="edge")
    height, width = padded.shape[0] // by, padded.shape[1] // by
    parts = padded.reshape(height, by, width, by, 3).astype(float)
    reduced = parts.mean((1, 3)).round().astype(np.uint8)
    for side in (199 // by, 20):
        wanted = Frame(width=side, height=side, crop="random")
        for draw in map(draws.row_key, range(50)):
            exact, placed = frame(np.array(whole), wanted, draw)
            scaled, again = frame(reduced, wanted, draw, size=size)
            assert placed == again
            assert (exact.int() - scaled.int()).abs().float().mean() < 1.5


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="50 x 40 pixels are no reduction of 70 x 40"):
        frame(noise(50, 40), SQUARE, 0, size=(70, 40))


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"flip": 1.1}, {"flip": -0.1}, {"crop": "left"}, {"mirror": True}]
)
def test_a_frame_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Frame.model_validate({"width": 8, "height": 8} | wrong)
