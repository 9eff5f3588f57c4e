"""Bytes to pixels, text and records. JPEG, PNG, WebP, txt, json and cls; nothing is unpickled."""

import io
import json
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import ShardError
from .records import Record

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
"""Images with more pixels are refused from their header, before any is decoded."""


def is_image(extension: str) -> bool:
    """Whether a member with this extension is the sample's image."""
    return extension.rpartition(".")[2] in ("jpg", "jpeg", "png", "webp")


def image(blob: bytes) -> Image.Image:
    """The image upright in RGB; transparency is laid on white.

    Raises:
        ValueError: more pixels than allowed.
        OSError: not an image of the three formats, or a damaged one.
    """
    with _opened(blob) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip to white
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.new("RGBA", rgba.size, "white")
        upright.alpha_composite(rgba)
    return upright.convert("RGB")


def size(blob: bytes) -> tuple[int, int] | None:
    """(width, height) from the image's header, None where there is none to read."""
    try:
        with _opened(blob) as opened:
            return opened.size
    except (OSError, ValueError):
        return None


def _opened(blob: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(blob), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels: {err}") from err


def sample(record: Record, blobs: dict[str, bytes], *, shard: str) -> dict[str, Any]:
    """The sample's `image`, `text` and `fields`, each checked against the index's crc32.

    `image` and `text` are None where the sample has no such member.

    Raises:
        ShardError: a member's bytes are not those that were indexed, or cannot be decoded.
    """
    found: dict[str, Any] = {"image": None, "text": None, "fields": {}}
    for extension, blob in blobs.items():
        if zlib.crc32(blob) != record.members[extension].crc32:
            raise ShardError(
                f"{shard}: {record.key}.{extension} is not the file that was indexed (crc32). "
                "The shard changed or is damaged: index it again, or upload it again."
            )
        try:
            _put(found, extension, blob)
        except Exception as err:  # Pillow raises anything on a damaged file: struct.error, KeyError
            raise ShardError(
                f"{shard}: {record.key}.{extension} cannot be decoded: {err}. "
                "`diptych data check` lists every such file."
            ) from err
    return found


def _put(found: dict[str, Any], extension: str, blob: bytes) -> None:
    if is_image(extension):
        found["image"] = found["image"] or image(blob)  # the first one, as in the index
    elif extension == "txt":
        found["text"] = blob.decode().strip()
    elif extension == "json":
        fields = json.loads(blob)
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON object is wanted, not a {type(fields).__name__}")
        found["fields"] = {**fields, **found["fields"]}
    elif extension == "cls":
        found["fields"] = {**found["fields"], "cls": int(blob)}
