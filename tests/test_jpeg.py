import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from diptych.data import decode, jpeg
from diptych.data.records import Member, Record
from diptych.errors import ShardError

Size = tuple[int, int]
ORIENTATION = 0x0112


def photo(width: int, height: int) -> Image.Image:
    """Soft colours with a few edges, no side like another."""
    small = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    soft = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    soft[: height // 3, width // 2 :, 0] //= 2
    return Image.fromarray(soft)


def encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def by_pillow(blob: bytes) -> np.ndarray:
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(blob)))
    assert upright
    return np.asarray(upright.convert("RGB"))


def sample(blob: Any, **options: Any) -> dict[str, Any]:
    members = {"jpg": Member(0, len(blob), zlib.crc32(blob))}
    return decode.sample(Record("key", members), {"jpg": blob}, shard="x.tar", **options)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (7, 33), (64, 48), (321, 123)])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"subsampling": "4:1:1"},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
        {"quality": 5},
        {"icc_profile": b"colours" * 20_000},
        {"comment": b"\xff\xda" * 30_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_are_those_of_pillow(size: Size, options: dict[str, Any], mode: str) -> None:
    blob = encode(photo(*size).convert(mode), **options)
    head = jpeg.header(blob)
    assert head == (*size, mode != "CMYK", False)
    pixels, found = decode.image(blob)
    assert found == size
    assert (pixels == by_pillow(blob)).all()
    assert decode.size(blob) == size


def exif(orientation: int) -> dict[str, Any]:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return {"exif": tags}


def xmp(orientation: int) -> dict[str, Any]:
    return {"xmp": f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()}


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("tag", [exif, xmp])
@pytest.mark.parametrize("fit", [None, (16, 16), (60, 20), (20, 60), (200, 1)])
def test_orientation_is_undone_at_every_scale(orientation: int, tag: Any, fit: Size | None) -> None:
    blob = encode(photo(200, 120), **tag(orientation))
    full, size = decode.image(blob)
    assert (full == by_pillow(blob)).all()
    assert size == decode.size(blob) == ((120, 200) if orientation in (5, 6, 7, 8) else (200, 120))
    pixels, again = decode.image(blob, fit=fit)
    assert again == size
    height, width = pixels.shape[:2]
    wanted = Image.fromarray(full).resize((width, height), Image.Resampling.BOX)
    assert np.abs(pixels.astype(int) - np.asarray(wanted)).mean() < 3
    assert pixels.flags.c_contiguous
    if fit and size[0] >= fit[0] and size[1] >= fit[1]:
        assert width >= fit[0]
        assert height >= fit[1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_a_scale_covers_and_half_of_it_would_not(
    width: int, height: int, fit_width: int, fit_height: int
) -> None:
    blob = encode(Image.new("RGB", (width, height), (200, 100, 50)))
    pixels, size = decode.image(blob, fit=(fit_width, fit_height))
    assert size == (width, height)
    part = next(p for p in (1, 2, 4, 8) if -(-width // p) <= pixels.shape[1])
    scales = {p: (-(-width // p), -(-height // p)) for p in (1, 2, 4, 8)}
    assert scales[part] == pixels.shape[1::-1]
    covers = [p for p in scales if width >= p * fit_width and height >= p * fit_height]
    assert scales[part] == scales[max(covers, default=1)]
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("size", [(2, 2), (3, 7), (7, 7), (9, 9), (12, 9)])
@pytest.mark.parametrize("by", [1, 2, 4, 8])
def test_a_small_image_is_decoded_at_no_other_scale(size: Size, by: int) -> None:
    blob = encode(photo(*size))
    fit = max(1, size[0] // by), max(1, size[1] // by)
    pixels, _ = decode.image(blob, fit=fit)
    if max(size) < 8 or by == 1:
        assert (pixels == by_pillow(blob)).all()
    else:
        reduced = Image.open(io.BytesIO(blob))
        reduced.draft("RGB", fit)  # libjpeg's own reduction, in Pillow
        assert (pixels == np.asarray(reduced)).all()


def test_exact_means_in_full() -> None:
    blob = encode(photo(200, 120))
    scaled = sample(blob, fit=(50, 30))
    assert (scaled["image"].shape, scaled["size"]) == ((30, 50, 3), (200, 120))
    exact = sample(blob, fit=(50, 30), exact=True)
    assert (exact["image"] == by_pillow(blob)).all()
    assert exact["size"] == (200, 120)


def test_a_slice_of_a_block_is_read_in_place() -> None:
    blob = encode(photo(40, 30))
    block = memoryview(b"before" + blob + b"after")[6 : 6 + len(blob)]
    assert (sample(block)["image"] == by_pillow(blob)).all()


def test_what_pillow_forgives_is_forgiven() -> None:
    blob = encode(photo(64, 64), restart_marker_rows=1)
    place = blob.index(b"\xff\xd1")
    for odd in (
        blob[:-2] + b"\0" * 40,  # no end mark
        blob[:place] + b"\0" * 5 + blob[place:],  # rubbish before a marker
        blob + b"trailing",
    ):
        assert (sample(odd, fit=(8, 8))["size"]) == (64, 64)
        assert (decode.image(odd)[0] == by_pillow(odd)).all()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("fit", [None, (8, 8)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_an_error(keep: float, fit: Size | None, progressive: bool) -> None:
    blob = encode(photo(200, 120), progressive=progressive)
    with pytest.raises(ShardError, match=r"x\.tar: key\.jpg cannot be decoded: .*truncated"):
        sample(blob[: int(len(blob) * keep)], fit=fit)


def with_size(blob: bytes, width: int, height: int) -> bytes:
    place = blob.index(b"\xff\xc0") + 5
    return blob[:place] + struct.pack(">HH", height, width) + blob[place + 4 :]


def test_a_lie_about_the_size_is_an_error() -> None:
    blob = encode(photo(64, 48))
    for size in ((65_535, 65_535), (65_500, 1000)):
        with pytest.raises(ShardError, match=f"{size[0]} x {size[1]} pixels cannot be in"):
            sample(with_size(blob, *size), fit=(8, 8))
    padded = with_size(blob, 65_535, 65_535) + bytes(9_000_000)
    with pytest.raises(ShardError, match="65535 x 65535 pixels are more than 64,000,000"):
        sample(padded, fit=(8, 8))
    with pytest.raises(ShardError, match=r"2000 x 2000 pixels cannot be in [0-9,]+ bytes"):
        sample(with_size(blob, 2000, 2000))
    with pytest.raises(ShardError, match="cannot be decoded"):
        sample(with_size(blob, 64, 0))


def test_endless_scans_are_refused() -> None:
    blob = encode(photo(64, 48), progressive=True)
    last = blob[blob.rindex(b"\xff\xda") : -2]
    assert sample(blob)["size"] == (64, 48)
    with pytest.raises(ShardError, match="more than 100 scans"):
        sample(blob[:-2] + last * 200 + blob[-2:])


def test_a_flat_image_is_no_lie() -> None:
    for options in ({}, {"progressive": True}, {"optimize": True}, {"subsampling": "4:4:4"}):
        blob = encode(Image.new("RGB", (4000, 3000), (10, 20, 30)), **options)
        assert decode.image(blob, fit=(100, 100))[1] == (4000, 3000)
