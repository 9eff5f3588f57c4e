"""The sets of pictures: JPEGs cut at random from real photographs, in shards of 500.

A crop is scaled, its colours are shifted, noise as a sensor makes it is added, and it is saved.
Noise is adapted until the file has the size that is wanted, so that decoding costs what it costs
on a photograph of that size. The same number always gives the same picture.
"""

import io
import json
import random
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data import pack

from . import home
from .arm import CHECKED, shorter

PER_SHARD = 500
_NAMES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "china", "flower")
_WORDS = ("a", "the", "old", "red", "small", "quiet", "boat", "street", "cat", "under", "near")


@dataclass(frozen=True)
class Kind:
    """What the pictures of a set are like."""

    samples: int
    short_px: int
    quality: int
    least_kb: int
    most_kb: int
    size: int
    """Side of the square that the arms decode to, in pixels."""


KINDS = {
    "a": Kind(20_000, 256, 95, 30, 60, size=224),
    "b": Kind(4_000, 512, 92, 80, 130, size=256),
    # Sets that differ in nothing but the number of their shards; `growth.py` makes them.
    "g20": Kind(400, 64, 90, 1, 8, size=64),
    "g200": Kind(4_000, 64, 90, 1, 8, size=64),
    "g2000": Kind(40_000, 64, 90, 1, 8, size=64),
}


def make(name: str) -> None:
    """Makes a set: tars, the same samples as loose files, and the truth about them."""
    if home.truth(name).exists():
        return
    for folder in (home.shards(name), home.loose(name)):
        folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        numbers = range(KINDS[name].samples // PER_SHARD)
        lines = [
            line for found in pool.map(_shard, [name] * len(numbers), numbers) for line in found
        ]
    home.truth(name).write_text("".join(lines))


def _shard(name: str, number: int) -> list[str]:
    kind, lines, samples = KINDS[name], [], []
    for place in range(number * PER_SHARD, (number + 1) * PER_SHARD):
        draw = random.Random(f"{name}/{place}")
        members = sample(kind, draw)
        key = f"{place:08d}"
        samples.append((key, members))
        lines.append(_line(key, members, kind.size))
        for extension, blob in members.items():
            (home.loose(name) / f"{key}.{extension}").write_bytes(blob)
    (home.shards(name) / f"{number:05d}.tar").write_bytes(pack.tar(samples))
    return lines


def _line(key: str, members: dict[str, bytes], size: int) -> str:
    row: dict[str, object] = {"key": key, "bytes": sum(map(len, members.values()))}
    if int(key) % CHECKED == 0:
        row["crc"] = zlib.crc32(members["txt"], zlib.crc32(members["jpg"]))
        row["mean"] = float(np.asarray(_square(members["jpg"], size)).mean())
    return json.dumps(row) + "\n"


def _square(blob: bytes, size: int) -> Image.Image:
    picture = Image.open(io.BytesIO(blob))
    scale = shorter(size) / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def sample(kind: Kind, draw: random.Random) -> dict[str, bytes]:
    """A picture and its caption."""
    return {"jpg": _picture(kind, draw), "txt": _caption(draw)}


def _picture(kind: Kind, draw: random.Random) -> bytes:
    photo = draw.choice(_photos())
    long = round(kind.short_px * draw.uniform(1, 1.5))
    width, height = (long, kind.short_px) if draw.random() < 0.7 else (kind.short_px, long)
    scale = min(photo.width / width, photo.height / height) * draw.uniform(0.6, 1)
    left = draw.uniform(0, photo.width - width * scale)
    top = draw.uniform(0, photo.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS, box), np.float32)
    gain = np.array([draw.uniform(0.85, 1.15) for _ in range(3)], np.float32)
    noise = _noise(height, width, draw)
    strength, blob = draw.uniform(2, 5), b""
    for _ in range(8):
        blob = _jpeg(pixels * gain + noise * strength, kind.quality)
        if len(blob) < kind.least_kb * 1000:
            strength *= 1.4
        elif len(blob) > kind.most_kb * 1000:
            strength *= 0.6
        else:
            break
    return blob


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _caption(draw: random.Random) -> bytes:
    words = min(60, 3 + int(draw.lognormvariate(2, 0.6)))
    return " ".join(draw.choice(_WORDS) for _ in range(words)).encode()


def _noise(height: int, width: int, draw: random.Random) -> np.ndarray:
    top, left = draw.randrange(1024 - height + 1), draw.randrange(1024 - width + 1)
    return _bank()[top : top + height, left : left + width]


@cache
def _bank() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1024, 1024, 3), np.float32)


@cache
def _photos() -> list[Image.Image]:
    """Photographs that scikit-image and scikit-learn ship, and the project's own if it is there."""
    files = sorted(path for path in (home.HOME / "photos").rglob("*") if path.stem in _NAMES)
    found = [Image.open(path).convert("RGB") for path in files if path.suffix in (".png", ".jpg")]
    beside = [folder / "shared" / "data" / "dreambooth-20.tar" for folder in home.ROOT.parents]
    own = next((path for path in beside if path.exists()), None)
    return found + (list(_in_tar(own)) if own else [])


def _in_tar(path: Path) -> Iterator[Image.Image]:
    with tarfile.open(path) as archive:
        for member in sorted(archive.getnames()):
            file = archive.extractfile(member) if member.endswith(".jpg") else None
            if file:
                yield Image.open(file).convert("RGB")
