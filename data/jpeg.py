"""JPEG by libjpeg-turbo, straight to the scale that is needed; what is odd is left to Pillow."""

from typing import NamedTuple

import numpy as np
import simplejpeg

Blob = bytes | memoryview

_APP1, _SCAN = 0xE1, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # less Huffman tables, "JPG", arithmetic tables
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_PIXELS_A_BYTE = 512  # at most: a Huffman code has a bit or more, and stands for 8 x 8 pixels
_MAX_SCANS = 100  # an honest file has about ten; each may cost a pass over all pixels

_IN_FULL = (0, 0)


class Header(NamedTuple):
    """What the segments before the first scan say."""

    width: int
    """Pixels as stored, before any orientation."""
    height: int
    plain: bool
    """Eight bits, Huffman coded, gray or three colours: not a case for Pillow."""
    tagged: bool
    """Carries EXIF or XMP, so perhaps an orientation."""


def header(blob: Blob) -> Header | None:
    """The header; None for what is no JPEG or has a gap between its segments.

    Raises:
        ValueError: fewer bytes than so many pixels need, or more scans than an honest file has.
    """
    if bytes(blob[:3]) != b"\xff\xd8\xff":
        return None
    place, tagged, frame = 2, False, (0, b"")
    while place + 4 <= len(blob) and blob[place] == 0xFF:
        kind, length = blob[place + 1], blob[place + 2] << 8 | blob[place + 3]
        if kind in _FRAMES:
            frame = (kind, bytes(blob[place + 4 : place + 10]))
        elif kind == _APP1:
            tagged = True
        elif kind == _SCAN:
            return _header(*frame, tagged, blob)
        place += 2 + length
    return None


def _header(kind: int, frame: bytes, tagged: bool, blob: Blob) -> Header | None:
    if len(frame) < 6:
        return None
    bits, colours = frame[0], frame[5]
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    if kind not in (_BASELINE, _EXTENDED) and bytes(blob).count(b"\xff\xda") > _MAX_SCANS:
        raise ValueError(f"more than {_MAX_SCANS} scans in one JPEG")
    plain = kind in (_BASELINE, _EXTENDED, _PROGRESSIVE) and bits == 8 and colours in (1, 3)
    if plain and len(blob) * _PIXELS_A_BYTE < width * height:
        raise ValueError(f"{width} x {height} pixels cannot be in {len(blob):,} bytes")
    return Header(width, height, plain and width > 0 and height > 0, tagged)


def decode(blob: Blob, head: Header, fit: tuple[int, int] | None) -> np.ndarray | None:
    """The pixels (H, W, 3) uint8 as stored; None where libjpeg-turbo finds anything amiss.

    With `fit` (width, height) they are decoded at the smallest of 1/8, 1/4, 1/2 and 1 whose both
    sides are no less than it; without, in full and bit for bit as Pillow decodes them.
    """
    width, height = _scaled(head, *fit) if fit else _IN_FULL
    try:
        return simplejpeg.decode_jpeg(blob, "RGB", min_width=width, min_height=height)
    except ValueError:
        return None


def _scaled(head: Header, width: int, height: int) -> tuple[int, int]:
    # Only halves: the other eighths have no vector code and cost more than decoding in full.
    # Only from 8 pixels on: fewer are as many at the next smaller scale, which would be taken.
    for part in (8, 4, 2) if max(head.width, head.height) >= 8 else ():
        if head.width >= part * width and head.height >= part * height:
            return -(-head.width // part), -(-head.height // part)
    return _IN_FULL
