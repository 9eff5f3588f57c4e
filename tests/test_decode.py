import io
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diptych.data import decode, pictures
from diptych.data.records import Member, Record
from diptych.errors import ShardError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(blob: bytes) -> np.ndarray:
    found, size = decode.image(blob)
    assert (found.dtype, found.shape) == (np.uint8, (size[1], size[0], 3))
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert decode.size(blob) == size
    return found


def sample(blobs: dict[str, bytes], **options: Any) -> dict[str, Any]:
    members = {name: Member(0, len(blob), zlib.crc32(blob)) for name, blob in blobs.items()}
    return decode.sample(Record("key", members), blobs, shard="x.tar", **options)


NOTHING = {"image": None, "size": None, "text": None, "fields": {}, "arrays": {}}


def png(width: int, height: int) -> bytes:
    """A whole black PNG of one bit a pixel: a few bytes for millions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 2) * height))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})]
)
def test_three_formats_are_read(format: str, options: dict[str, Any]) -> None:
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    found = pixels(encode(Image.fromarray(smooth), format, **options)).astype(int)
    assert np.abs(found - smooth).max() <= (8 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_no_other_format_is_read(format: str) -> None:
    with pytest.raises(OSError, match="cannot identify"):
        decode.image(encode(Image.fromarray(PIXELS), format))


@pytest.mark.parametrize("side", [8001, 12_000, 20_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    blob = png(side, side)
    assert len(blob) < 100_000
    for found in (blob, blob[:60]):  # 60 bytes hold the header, and no pixel
        with pytest.raises(ShardError, match=r"x\.tar: key\.png cannot be decoded: .*pixels"):
            sample({"png": found})
    assert decode.size(png(100, 50)) == (100, 50)


def test_the_last_allowed_pixel_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 5000)
    assert decode.image(png(100, 50))[1] == (100, 50)
    with pytest.raises(ValueError, match="101 x 50 pixels are more than 5,000"):
        decode.image(png(101, 50))


STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.transpose(1, 0, 2), 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_orientation_is_undone(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PIXELS)))
    assert (pixels(encode(stored, format, exif=exif, lossless=True)) == PIXELS).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_that_is_none_turns_nothing(format: str) -> None:
    blob = encode(Image.new("RGB", (40, 30)), format, exif=b"Exif\0\0no TIFF at all")
    assert b"no TIFF at all" in blob
    assert decode.image(blob)[1] == decode.size(blob) == (40, 30)
    (small,) = pictures.ready({"image": blob}, pictures.Fit(longest=20)).values()
    assert decode.size(small) == (20, 15)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])
    rgba[0, 0, 3] = 255
    palette = Image.fromarray(rgba[..., 0] % 4).convert("P")
    for stored in (Image.fromarray(rgba), Image.fromarray(rgba[..., [0, 3]], "LA")):
        found = pixels(encode(stored, "PNG"))
        assert (found[1:] == 255).all()
        assert found[0, 0, 0] == PIXELS[0, 0, 0]
    found = pixels(encode(palette, "PNG", transparency=int(rgba[2, 2, 0] % 4)))
    assert (found[2, 2] == 255).all()


def test_gray_cmyk_and_deep_images_become_rgb() -> None:
    gray = PIXELS[..., 0]
    expected = np.dstack([gray] * 3)
    assert (pixels(encode(Image.fromarray(gray), "PNG")) == expected).all()
    deep = gray.astype(np.uint16) * 256 + 255
    assert (pixels(encode(Image.fromarray(deep), "PNG")) == expected).all()
    bits = encode(Image.fromarray(gray > 127), "PNG")
    assert (pixels(bits)[..., 1] == np.where(gray > 127, 255, 0)).all()
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encode(red, "JPEG")).astype(int) - [255, 0, 0]).max() < 8


def test_text_and_records_are_read() -> None:
    found = sample({"txt": " grün \n".encode(), "json": b'{"a": [1]}', "cls": b"7\n"})
    assert found == NOTHING | {"text": "grün", "fields": {"a": [1], "cls": 7}}


def test_the_first_image_is_the_image() -> None:
    other = encode(Image.new("RGB", (3, 3)), "PNG")
    found = sample({"png": encode(Image.fromarray(PIXELS), "PNG"), "mask.png": other})
    assert found["size"] == (9, 6)
    assert (found["image"] == PIXELS).all()


@pytest.mark.parametrize(
    ("name", "blob", "reason"),
    [
        ("jpg", b"no image", "cannot identify"),
        ("jpg", b"", "cannot identify"),
        ("png", encode(Image.fromarray(PIXELS), "PNG")[:-60], "truncated|broken"),
        ("jpg", encode(Image.fromarray(PIXELS), "JPEG")[:-40], "truncated"),
        ("txt", b"\xff", "utf-8"),
        ("json", b"{", "Expecting"),
        ("json", b"[1]", "a JSON object is wanted, not a list"),
        ("json", b"[" * 100_000, "recursion"),
        ("cls", b"seven", "invalid literal"),
    ],
)
def test_what_cannot_be_decoded_is_named(name: str, blob: bytes, reason: str) -> None:
    with pytest.raises(ShardError, match=rf"x\.tar: key\.{name} cannot be decoded: .*({reason})"):
        sample({name: blob})


@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow's own, about the metadata of damaged files
def test_a_damaged_image_decodes_or_is_named(format: str, data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    blob = bytearray(encode(Image.fromarray(PIXELS), format, exif=exif))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        sample({"jpg": bytes(blob)})
    except ShardError as err:
        assert "x.tar: key.jpg" in str(err)


def test_bytes_that_were_not_indexed_are_refused() -> None:
    record = Record("key", {"txt": Member(0, 3, zlib.crc32(b"one"))})
    assert decode.sample(record, {"txt": b"one"}, shard="x.tar")["text"] == "one"
    with pytest.raises(ShardError, match=r"x\.tar: key\.txt is not the file that was indexed"):
        decode.sample(record, {"txt": b"two"}, shard="x.tar")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    blob = pickle.dumps(Canary(canary))
    names = ["pyd", "pkl", "pickle", "pth", "pt", "npz", "pyd.json5", "ten", "mp"]
    found = sample({**dict.fromkeys(names, blob), "json": json.dumps({"a": 1}).encode()})
    assert found == NOTHING | {"fields": {"a": 1}}
    objects = io.BytesIO()
    np.save(objects, np.array([Canary(canary)], dtype=object))
    with pytest.raises(ShardError, match=r"key\.npy cannot be decoded: .*never unpickled"):
        sample({"npy": objects.getvalue()})
    for name in ("json", "cls", "txt", "jpg", "npy", "x.npy"):
        with pytest.raises(ShardError):
            sample({name: blob})
    assert not canary.exists()
    pickle.loads(blob)
    assert canary.exists(), "the canary must be able to sing"
