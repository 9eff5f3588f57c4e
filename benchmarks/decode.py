"""What decoding JPEGs at a scale costs and what it does to pixels: `python benchmarks/decode.py`.

Three ways to the same square of uint8, channels first: Pillow in full with its bicubic resize, as
most loaders do it; Diptych with `exact`; Diptych as it is. One thread; the arms take turns, round
by round, and Pillow runs twice a round as a control. A table and JSON lines are printed.

    python benchmarks/decode.py                       # photos of scikit-image and scikit-learn
    python benchmarks/decode.py --tar photos.tar      # the JPEGs of a tar
"""

import argparse
import io
import json
import statistics
import tarfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from diptych.data import decode
from diptych.data.transforms import Frame, frame

CASES = [(512, 256), (512, 224), (256, 224), (256, 256)]
"""(short side of the source, side of the square)."""
QUALITY = 92
Arm = Callable[[bytes, Frame], np.ndarray]


def main() -> None:
    """Measures every case and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tar", help="photos to use instead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--photos", type=int, default=40)
    told = parser.parse_args()
    photos = from_tar(told.tar, told.photos) if told.tar else samples()
    print(f"{len(photos)} photos, JPEG quality {QUALITY}, CPU ms an image: median of {told.rounds}")
    print(
        f"{'':12} {'Pillow':>7} {'again':>7} {'exact':>7} {'ours':>7} {'x':>5}  PSNR of ours: exact"
    )
    for source, side in CASES:
        row = measure([encoded(photo, source) for photo in photos], side, told.rounds)
        shown = " ".join(f"{row[name]:7.3f}" for name in ("pillow", "again", "exact", "ours"))
        ratio = row["pillow"] / row["ours"]
        quality = " ".join(f"{row[name]:.1f}" for name in ("psnr", "psnr_low", "psnr_exact"))
        print(f"{source} -> {side}   {shown} {ratio:5.1f}  {quality}")
        print(json.dumps({"benchmark": "decode", "source": source, "side": side, **row}))


def samples() -> list[Image.Image]:
    """Photos that come with scikit-image and scikit-learn, nothing is downloaded."""
    try:
        from skimage import data  # pyright: ignore[reportMissingImports]
        from sklearn.datasets import load_sample_images  # pyright: ignore[reportMissingImports]
    except ImportError as err:
        raise SystemExit(
            f"{err}. Run: pip install scikit-image scikit-learn, or give --tar"
        ) from err
    found = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    found += [data.retina(), data.hubble_deep_field(), data.stereo_motorcycle()[0]]
    return [Image.fromarray(pixels) for pixels in [*found, *load_sample_images().images]]


def from_tar(path: str, most: int) -> list[Image.Image]:
    """Evenly spaced JPEGs of a tar."""
    with tarfile.open(path) as archive:
        names = [n for n in archive.getnames() if n.lower().endswith((".jpg", ".jpeg"))]
        files = [archive.extractfile(name) for name in names[:: max(1, len(names) // most)]]
        return [Image.open(io.BytesIO(file.read())).convert("RGB") for file in files if file]


def encoded(photo: Image.Image, short: int) -> bytes:
    """The photo as a JPEG with a short side of so many pixels."""
    scale = short / min(photo.size)
    size = max(short, round(photo.width * scale)), max(short, round(photo.height * scale))
    if size != photo.size:
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def measure(blobs: list[bytes], side: int, rounds: int) -> dict[str, float]:
    """Median CPU ms an image by arm; PSNR (dB) against Pillow: mean, lowest, and of `exact`."""
    square = Frame(width=side, height=side)
    arms: dict[str, Arm] = {"pillow": pillow, "again": pillow, "exact": exact, "ours": ours}
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in arms if number % 2 else reversed(arms):
            started = time.thread_time()
            for blob in blobs:
                arms[name](blob, square)
            spent[name].append((time.thread_time() - started) / len(blobs) * 1e3)
    wanted = [pillow(blob, square) for blob in blobs]
    scaled = [psnr(ours(b, square), w) for b, w in zip(blobs, wanted, strict=True)]
    full = [psnr(exact(b, square), w) for b, w in zip(blobs, wanted, strict=True)]
    return {
        **{name: round(statistics.median(times), 4) for name, times in spent.items()},
        "psnr": round(float(np.mean(scaled)), 2),
        "psnr_low": round(float(np.min(scaled)), 2),
        "psnr_exact": round(float(np.mean(full)), 2),
    }


def pillow(blob: bytes, square: Frame) -> np.ndarray:
    """Decoded in full, resized with the usual bicubic, cropped, channels first."""
    image = Image.open(io.BytesIO(blob)).convert("RGB")
    scale = square.width / min(image.size)
    width, height = (int(side * scale + 1e-6) for side in image.size)
    if scale != 1:  # both sides by the same scale: the usual rounding of the longer one would
        # move pixels by up to half of one, and PSNR would measure that
        box = (0, 0, min(image.width, width / scale), min(image.height, height / scale))
        image = image.resize((width, height), Image.Resampling.BICUBIC, box)
    left, top = (width - square.width) // 2, (height - square.height) // 2
    image = image.crop((left, top, left + square.width, top + square.height))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def exact(blob: bytes, square: Frame) -> np.ndarray:
    """Diptych, decoded in full."""
    pixels, size = decode.image(blob)
    return frame(pixels, square, 0, size=size)[0].numpy()


def ours(blob: bytes, square: Frame) -> np.ndarray:
    """Diptych, decoded straight to the scale needed."""
    pixels, size = decode.image(blob, fit=(square.width, square.height))
    return frame(pixels, square, 0, size=size)[0].numpy()


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """dB, 99 where they are the same."""
    error = float(np.mean((found.astype(np.float64) - wanted) ** 2))
    return 10 * np.log10(255**2 / error) if error else 99.0


if __name__ == "__main__":
    main()
