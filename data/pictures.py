"""Pictures on their way into a shard: proven to decode, made JPEG or PNG where they are neither nor
WebP, and shrunk when they are too large."""

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from . import decode
from .items import Members, Unreadable

_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_CONVERTED = {"AVIF": "jpg", "JPEG2000": "jpg", "BMP": "png", "GIF": "png", "TIFF": "png"}
"""What becomes of other formats: JPEG of what was lossy, PNG of what was not or is transparent."""
_SAVING: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "subsampling": 0},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
}


@dataclass(frozen=True)
class Fit:
    """How large a packed picture may be; one that is not larger keeps its very bytes."""

    longest: int | None = None
    """Pixels of the longer side."""
    shortest: int | None = None
    """Pixels of the shorter side."""
    quality: int = 92
    """Of a JPEG or WebP that had to be encoded again."""

    def size(self, width: int, height: int) -> tuple[int, int] | None:
        """(width, height) to shrink to; None when it fits."""
        scales = [1.0]
        if self.longest:
            scales.append(self.longest / max(width, height))
        if self.shortest:
            scales.append(self.shortest / min(width, height))
        scale = min(scales)
        return None if scale == 1 else (max(1, round(width * scale)), max(1, round(height * scale)))


def ready(members: Members, fit: Fit) -> Members:
    """The members with the picture under its true extension, decoded once to prove it.

    Raises:
        Unreadable: no picture of a known format, a damaged one, or one with too many pixels; or
            more text than a loader takes.
    """
    for name, data in members.items():
        if name in ("txt", "json") and len(data) > decode.MAX_TEXT:
            raise Unreadable("too much text", f"{len(data):,} bytes of {name}")
    blob = members["image"]
    try:
        with Image.open(io.BytesIO(blob), formats=(*decode.FORMATS, *_CONVERTED)) as opened:
            extension = _extension(opened)
            width, height = opened.size
            if width * height > decode.MAX_PIXELS:
                raise Unreadable("too many pixels", f"{width} x {height}; make it smaller first")
            size = fit.size(width, height)
            if size is None and opened.format in _CONVERTED:
                size = width, height
            if size:
                blob = _smaller(opened, size, extension, fit.quality)
            else:
                decode.image(blob, fit=(1, 1))  # every byte of a JPEG is read, 1/64 of it made
    except Image.DecompressionBombError as err:
        raise Unreadable("too many pixels", str(err)) from err
    except Image.UnidentifiedImageError as err:
        raise Unreadable("not a JPEG, PNG or WebP", f"{len(blob)} bytes") from err
    except Unreadable:
        raise
    except Exception as err:  # Pillow raises anything on a damaged file: struct.error, KeyError
        raise Unreadable("cannot be decoded", f"{type(err).__name__}: {err}") from err
    return {extension: blob, **{name: data for name, data in members.items() if name != "image"}}


def _extension(opened: Image.Image) -> str:
    kind = opened.format or ""
    if kind in _CONVERTED:
        return "png" if opened.has_transparency_data else _CONVERTED[kind]
    return _EXTENSIONS[kind]


def _smaller(opened: Image.Image, size: tuple[int, int], extension: str, quality: int) -> bytes:
    """The picture upright at `size`, of the file before it is turned, encoded again."""
    kept = opened.info.get("icc_profile") if opened.mode in ("L", "RGB", "RGBA") else None
    opened.draft(None, (2 * size[0], 2 * size[1]))  # None keeps the mode
    turn = 1 if opened.format == "TIFF" else decode.turn(opened)  # which Pillow turns by itself
    upright = opened.copy() if turn == 1 else ImageOps.exif_transpose(opened)
    if upright.mode not in ("L", "RGB", "RGBA"):
        alpha = upright.has_transparency_data
        upright = upright.convert("RGBA") if alpha else _rgb(upright)
    small = upright.resize((size[1], size[0]) if turn >= 5 else size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, **_SAVING[extension], quality=quality, icc_profile=kept)
    return buffer.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB as training would see it: palettes, 16 bits of gray, CMYK, YCbCr."""
    if image.mode in ("CMYK", "YCbCr"):
        return image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Image.fromarray(decode.image(buffer.getvalue())[0])
