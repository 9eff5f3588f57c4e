"""Bytes to pixels, text, records and arrays. Seven formats; nothing is unpickled, ever.

JPEG, PNG, WebP, txt, json, cls and npy. Every limit is checked in the header, before anything is
decoded or reserved. `docs/decode.md` says what decoding at a scale does to pixels.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from isal import isal_zlib
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import CrcError, ShardError
from . import jpeg
from .jpeg import Blob
from .records import Record
from .urls import shown

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
"""Images with more pixels are refused from their header, before any is decoded."""
MAX_TEXT = 16 << 20
"""Bytes of a txt, json or cls member; JSON takes up to thirty times its size in memory."""

_STRIP = 512  # rows
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}
"""From stored to upright pixels by EXIF orientation; all others are upright already."""
_SIDEWAYS = (5, 6, 7, 8)


def is_image(extension: str) -> bool:
    """Whether a member with this extension is the sample's image."""
    return extension.rpartition(".")[2] in ("jpg", "jpeg", "png", "webp")


def is_known(extension: str) -> bool:
    """Whether a member with this extension is decoded at all."""
    known = is_image(extension) or extension in ("txt", "json", "cls", "npy")
    return known or extension.endswith(".npy")


def image(blob: Blob, *, fit: tuple[int, int] | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns (H, W, 3) uint8 RGB, upright, transparency laid on white; and its full (W, H).

    Args:
        blob: a JPEG, PNG or WebP.
        fit: (width, height) that the image will be resized to cover. A JPEG is then decoded at
            1/8, 1/4 or 1/2 of its size if that still covers it; all else is decoded in full.

    Raises:
        ValueError: more pixels than allowed.
        OSError: not an image of the three formats, or a damaged one.
    """
    head = jpeg.header(blob)
    if head:
        _require_pixels(head.width, head.height)
    if head and head.plain:
        told = _orientation(blob) if head.tagged else 1
        if fit and told in _SIDEWAYS:
            fit = fit[1], fit[0]
        pixels = jpeg.decode(blob, head, fit)
        if pixels is not None:
            upright = _TURNS[told](pixels) if told in _TURNS else pixels
            return np.ascontiguousarray(upright), _upright(head.width, head.height, told)
    pixels = _by_pillow(blob)
    return pixels, (pixels.shape[1], pixels.shape[0])


def size(blob: Blob) -> tuple[int, int] | None:
    """(width, height) of the upright image, from its header; None where it cannot be read."""
    try:
        head = jpeg.header(blob)
        if head and head.width and head.height:
            return _upright(head.width, head.height, _orientation(blob) if head.tagged else 1)
        with _opened(blob) as opened:
            return _upright(*opened.size, _orientation(blob))
    except Exception:  # Pillow raises anything on a damaged file: struct.error, KeyError
        return None


def _by_pillow(blob: Blob) -> np.ndarray:
    with _opened(blob) as opened:
        _require_pixels(*opened.size)
        opened.load()
        if turn(opened) != 1:
            ImageOps.exif_transpose(opened, in_place=True)
        width, height = opened.size
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, _STRIP):  # so that no second copy of the whole is ever made
            bottom = min(height, top + _STRIP)
            pixels[top:bottom] = np.asarray(_rgb(opened.crop((0, top, width, bottom))))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    return image.convert("RGB")


def _opened(blob: Blob) -> Image.Image:
    try:
        return Image.open(io.BytesIO(blob), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels: {err}") from err
    except UnidentifiedImageError as err:  # Pillow's message holds an address: never the same twice
        raise OSError("cannot identify it as a JPEG, PNG or WebP image") from err


def _require_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")


def _orientation(blob: Blob) -> int:
    """1 to 8, as EXIF or XMP have it."""
    with _opened(blob) as opened:
        if opened.format == "PNG":  # Pillow decodes all of a PNG to learn that there is none
            _require_pixels(*opened.size)
            data = bytes(blob)
            if not any(tag in data for tag in (b"eXIf", b"type exif", b"com.adobe.xmp")):
                return 1
        return turn(opened)


def turn(opened: Image.Image) -> int:
    """1 to 8, as EXIF or XMP have it; 1 where the EXIF is none, as Pillow has it of a JPEG."""
    try:
        return opened.getexif().get(ExifTags.Base.Orientation, 1)
    except SyntaxError:
        return 1


def _upright(width: int, height: int, turn: int) -> tuple[int, int]:
    return (height, width) if turn in _SIDEWAYS else (width, height)


def sample(
    record: Record,
    blobs: Mapping[str, Blob],
    *,
    shard: str,
    fit: tuple[int, int] | None = None,
    exact: bool = False,
) -> dict[str, Any]:
    """Everything in a sample that is of a known format, each member checked against its crc32.

    Returns `image` (H, W, 3) uint8 RGB or None, `size` (width, height) of the whole upright image
    or None, `text` or None, `fields` of the json and cls members, and `arrays`: `x.npy` by its
    name x.

    Args:
        record: the sample as it was indexed.
        blobs: its members' bytes by extension.
        shard: named in errors.
        fit: (width, height) that the image will be resized to cover; see `image`.
        exact: decode in full all the same.

    Raises:
        CrcError: a member's bytes are not those that were indexed.
        ShardError: a member cannot be decoded.
    """
    found: dict[str, Any] = {"image": None, "size": None, "text": None, "fields": {}, "arrays": {}}
    for extension, blob in blobs.items():
        if isal_zlib.crc32(blob) != record.members[extension].crc32:
            raise CrcError(
                f"{shown(shard)}: {record.key}.{extension} is not the file that was indexed "
                "(crc32). The shard changed or is damaged: index it again, or upload it again."
            )
        try:
            _put(found, extension, blob, None if exact else fit)
        except Exception as err:  # Pillow raises anything on a damaged file: struct.error, KeyError
            raise ShardError(
                f"{shown(shard)}: {record.key}.{extension} cannot be decoded: {err}. "
                "`diptych data check` lists every such file."
            ) from err
    return found


def _put(found: dict[str, Any], extension: str, blob: Blob, fit: tuple[int, int] | None) -> None:
    if is_image(extension):
        if found["image"] is None:  # the first one, as in the index
            found["image"], found["size"] = image(blob, fit=fit)
    elif extension == "txt":
        found["text"] = _text(blob).strip()
    elif extension == "json":
        found["fields"] = {**_fields(_text(blob)), **found["fields"]}
    elif extension == "cls":
        found["fields"] = {**found["fields"], "cls": int(_text(blob))}
    elif is_known(extension):
        found["arrays"][extension.removesuffix(".npy")] = array(blob)


def _text(blob: Blob) -> str:
    if len(blob) > MAX_TEXT:
        raise ValueError(f"{len(blob):,} bytes of text are more than {MAX_TEXT:,}")
    return bytes(blob).decode("utf-8-sig")


def _fields(text: str) -> dict[str, Any]:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is wanted, not a {type(fields).__name__}")
    if "\\ud" in text or "\\uD" in text:  # half a character, which no tokenizer takes
        json.dumps(fields, ensure_ascii=False).encode()
    return fields


def array(blob: Blob) -> np.ndarray:
    """The array of an .npy file, copied out of it.

    Raises:
        ValueError: no such file, Python objects in it, or other than the bytes its shape needs.
    """
    file = io.BytesIO(blob)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, fortran, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
        file
    )
    if dtype.hasobject:
        raise ValueError(f"{dtype} holds Python objects, which are never unpickled")
    there = len(blob) - file.tell()
    if math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"{there} bytes are not those of {dtype} {shape}")
    order = "F" if fortran else "C"
    return np.ndarray(shape, dtype, file.getbuffer(), file.tell(), order=order).copy(order)
