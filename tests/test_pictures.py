import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data import decode
from diptych.data.items import Unreadable
from diptych.data.pictures import Fit, ready


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}[mode]
    rough = np.random.default_rng(0).integers(0, 256, (3, 3, *channels), dtype=np.uint8)
    return Image.fromarray(rough, mode).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(blob: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(blob))
    image.load()
    return image


@pytest.mark.parametrize("fit", [Fit(), Fit(longest=90), Fit(shortest=60), Fit(longest=5000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_fits_keeps_its_bytes(kind: str, fit: Fit) -> None:
    blob = saved(noise(90, 60), kind)
    extension = {"JPEG": "jpg"}.get(kind, kind.lower())
    found = ready({"image": blob, "txt": b"x", "json": b"{}"}, fit)
    assert list(found.items()) == [(extension, blob), ("txt", b"x"), ("json", b"{}")]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("fit", "size"),
    [
        (Fit(longest=60), (60, 40)),
        (Fit(shortest=20), (30, 20)),
        (Fit(longest=60, shortest=20), (30, 20)),
        (Fit(longest=1), (1, 1)),
    ],
)
def test_a_larger_picture_is_shrunk_and_stays_what_it_is(
    kind: str, fit: Fit, size: tuple[int, int]
) -> None:
    source = noise(90, 60)
    ((extension, blob),) = ready({"image": saved(source, kind)}, fit).items()
    small = opened(blob)
    assert (small.format, small.size) == (kind, size)
    if size != (1, 1):
        exact = np.asarray(source.resize(size, Image.Resampling.LANCZOS), dtype=float)
        assert np.abs(np.asarray(small.convert("RGB"), dtype=float) - exact).mean() < 8
    assert ready({"image": saved(source, kind)}, fit) == {extension: blob}, "the same every time"


def test_the_quality_is_heeded() -> None:
    blob = saved(noise(300, 300), quality=95)
    sizes = [len(ready({"image": blob}, Fit(longest=200, quality=q))["jpg"]) for q in (20, 92)]
    assert sizes[0] < sizes[1] / 2


def test_a_turned_picture_is_upright_once_it_is_shrunk() -> None:
    image = Image.new("RGB", (80, 40), "blue")
    image.paste("red", (0, 0, 40, 40))  # the left half, which turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    blob = saved(image, exif=exif, quality=95)
    kept = ready({"image": blob}, Fit(longest=80))["jpg"]
    assert kept == blob
    small = opened(ready({"image": blob}, Fit(longest=40))["jpg"])
    assert (small.size, dict(small.getexif())) == ((20, 40), {})
    assert small.getpixel((10, 5))[0] > 200 and small.getpixel((10, 35))[2] > 200  # type: ignore[index]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_tiff_is_upright_and_keeps_its_shape(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    blob = saved(noise(60, 40), "TIFF", exif=exif)
    upright = np.asarray(opened(blob).convert("RGB"))  # Pillow turns it while it loads it
    assert upright.shape == ((60, 40, 3) if turn >= 5 else (40, 60, 3))
    assert np.array_equal(decode.image(ready({"image": blob}, Fit())["png"])[0], upright)
    small = opened(ready({"image": blob}, Fit(longest=30))["png"])
    assert small.size == ((20, 30) if turn >= 5 else (30, 20))


@pytest.mark.parametrize(
    ("image", "kind", "mode"),
    [
        (noise(60, 60, "L"), "JPEG", "L"),
        (noise(60, 60, "CMYK"), "JPEG", "RGB"),
        (noise(60, 60, "RGBA"), "PNG", "RGBA"),
        (noise(60, 60, "LA"), "PNG", "RGBA"),
        (noise(60, 60).quantize(16), "PNG", "RGB"),
        (noise(60, 60, "L").convert("1"), "PNG", "RGB"),
        (Image.fromarray(np.full((60, 60), 30000, dtype=np.uint16)), "PNG", "RGB"),
        (noise(60, 60, "RGBA"), "WEBP", "RGBA"),
    ],
)
def test_every_sort_of_picture_can_be_shrunk(image: Image.Image, kind: str, mode: str) -> None:
    blob = saved(image, kind)
    small = opened(next(iter(ready({"image": blob}, Fit(longest=30)).values())))
    assert (small.mode, small.size) == (mode, (30, 30))
    assert abs(decode.image(blob)[0].mean() - decode.image(saved(small, kind))[0].mean()) < 8


def test_a_colour_profile_stays() -> None:
    blob = saved(noise(60, 60), icc_profile=b"profile")
    assert opened(ready({"image": blob}, Fit(longest=30))["jpg"]).info["icc_profile"] == b"profile"


def test_the_extension_is_that_of_the_content() -> None:
    assert list(ready({"image": saved(noise(8, 8), "PNG")}, Fit())) == ["png"]
    several = saved(noise(40, 40), "MPO", save_all=True, append_images=[noise(40, 40)])
    assert list(ready({"image": several}, Fit())) == ["jpg"]
    assert opened(ready({"image": several}, Fit(longest=20))["jpg"]).format == "JPEG"


@pytest.mark.parametrize(
    ("kind", "options", "extension", "error"),
    [
        ("BMP", {}, "png", 0),
        ("TIFF", {"compression": "tiff_lzw"}, "png", 0),
        ("TIFF", {"save_all": True, "append_images": [noise(9, 9)]}, "png", 0),
        ("TIFF", {"mode": "YCbCr"}, "png", 4),
        ("GIF", {"save_all": True, "append_images": [noise(60, 40)]}, "png", 40),
        ("AVIF", {"quality": 95}, "jpg", 8),
        ("JPEG2000", {}, "jpg", 8),
    ],
)
def test_other_formats_become_one_of_the_three(
    kind: str, options: dict[str, Any], extension: str, error: int
) -> None:
    image, options = noise(60, 40), {**options}
    mode = options.pop("mode", "RGB")
    found = ready({"image": saved(image.convert(mode), kind, **options), "txt": b"a"}, Fit())
    assert list(found) == [extension, "txt"]
    pixels = decode.image(found[extension])[0].astype(int)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels - np.asarray(image).astype(int)).mean() <= error / 2
    small = ready({"image": saved(image, kind, **options)}, Fit(longest=30))[extension]
    assert opened(small).size == (30, 20)


def test_what_is_transparent_stays_so_in_another_format() -> None:
    for kind in ("TIFF", "AVIF"):
        found = ready({"image": saved(noise(20, 20, "RGBA"), kind)}, Fit())
        assert opened(found["png"]).mode == "RGBA"


def cut(blob: bytes) -> bytes:
    return blob[: len(blob) // 2]


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "not a JPEG, PNG or WebP"),
        (b"GIF89a" + bytes(50), "not a JPEG, PNG or WebP"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "not a JPEG, PNG or WebP"),
        (cut(saved(noise(300, 300), "TIFF")), "cannot be decoded"),
        (cut(saved(noise(300, 300))), "cannot be decoded"),
        (cut(saved(noise(300, 300), "PNG")), "cannot be decoded"),
        (cut(saved(noise(300, 300), "WEBP")), "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("fit", [Fit(), Fit(longest=20)])
def test_what_is_no_picture_is_named(blob: bytes, reason: str, fit: Fit) -> None:
    with pytest.raises(Unreadable) as caught:
        ready({"image": blob}, fit)
    assert caught.value.reason == reason


@pytest.mark.parametrize("side", [8001, 13300])
def test_too_many_pixels_are_refused_from_the_header(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = saved(Image.new("1", (side, side)), "PNG")

    def decoded(*_: object) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with warnings.catch_warnings(), pytest.raises(Unreadable) as caught:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        ready({"image": blob}, Fit(longest=256))
    assert caught.value.reason == "too many pixels"


@pytest.mark.parametrize("name", ["txt", "json"])
def test_more_text_than_a_loader_takes_is_refused(name: str) -> None:
    members = {"image": saved(noise(8, 8)), name: b" " * decode.MAX_TEXT}
    assert ready(members, Fit())[name] == members[name]
    with pytest.raises(Unreadable, match=f"too much text: 16,777,217 bytes of {name}"):
        ready({**members, name: members[name] + b" "}, Fit())
