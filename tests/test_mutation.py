"""Damaged files and tars: each gives samples, or an error of ours that names it.

With `test_hostile.py` these are more than 10,000 inputs.

Nothing is random from run to run: every case is a function of its kind and number.
"""

import io
import json
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data import decode, index, storage
from diptych.data.check import check
from diptych.data.holes import Budget, Holes
from diptych.data.index import Manifest
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import Sample
from diptych.data.plan import Plan
from diptych.data.records import Member, Record, scan
from diptych.data.tokens import Text
from diptych.errors import CrcError, DiptychError, ShardError

pytestmark = [
    pytest.mark.usefixtures("bounded_memory"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's and NumPy's own, about damaged files
]

Row = tuple[Record, dict[str, bytes]]


def picture(number: int, format: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((17 + number, 14), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "a description"
    return tags


RECORD = {"width": 17, "tags": ["a", "ü", None, {"b": [1.5, -2e300]}], "similarity": 0.25}
FILES: dict[str, bytes] = {
    "jpg": picture(0, "JPEG"),
    "jpeg": picture(1, "JPEG", progressive=True, exif=exif(6)),
    "png": picture(2, "PNG"),
    "mask.png": picture(3, "PNG", exif=exif(8)),
    "webp": picture(4, "WEBP"),
    "alpha.webp": picture(5, "WEBP", lossless=True, exif=exif(3)),
    "txt": "a grün caption\n".encode(),
    "json": json.dumps(RECORD).encode(),
    "cls": b"12",
    "npy": saved(np.arange(24, dtype=np.float16).reshape(2, 3, 4)),
    "latent.npy": saved(np.asfortranarray(np.ones((3, 4), ">i4"))),
}
SAMPLES: list[tuple[str, list[str]]] = [
    ("000", ["jpg", "txt", "json"]),
    ("./dir.one/001", ["jpeg", "txt"]),
    ("0" * 130, ["png", "json", "cls"]),
    ("003", ["webp", "npy"]),
    ("dir/004", ["alpha.webp", "latent.npy"]),
    ("005", ["mask.png", "txt"]),
]


def healthy(format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for key, extensions in SAMPLES:
            for extension in extensions:
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(FILES[extension])
                archive.addfile(info, io.BytesIO(FILES[extension]))
    return buffer.getvalue()


TARS = [healthy(tarfile.GNU_FORMAT), healthy(tarfile.PAX_FORMAT)]
INDEXED = [list(scan(io.BytesIO(tar), shard="x.tar")) for tar in TARS]


@contextmanager
def survived() -> Iterator[None]:
    """Our error is an answer, any other fails the test."""
    try:
        yield
    except DiptychError as err:
        assert "x.tar" in str(err)


def read(data: bytes) -> None:
    """Scans as indexing does and decodes what comes."""
    with survived():
        for record, blobs in scan(io.BytesIO(data), shard="x.tar"):
            places = record.members
            assert {e: data[m.offset : m.offset + m.size] for e, m in places.items()} == blobs
            for blob in blobs.values():
                decode.size(blob)
            with survived():
                decode.sample(record, blobs, shard="x.tar", fit=(8, 8))


def test_the_healthy_tars_are_healthy() -> None:
    for rows in INDEXED:
        assert [record.key for record, _ in rows] == [key for key, _ in SAMPLES]
        for record, blobs in rows:
            assert blobs == {e: FILES[e] for e in record.members}
            found = decode.sample(record, blobs, shard="x.tar")
            assert found["image"] is not None


# Files that were damaged before they were indexed


def flip(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def overwrite(rng: random.Random, data: bytes) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice([1, 4, 30, 600, 5000])
    fill = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])
    return (data[:start] + fill + data[start + length :])[: len(data)]


def remove(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 2, 37, 512, 1024, 3000]) :]


def splice(rng: random.Random, data: bytes) -> bytes:
    start, other = rng.randrange(len(data)), rng.randrange(len(data))
    return data[:start] + data[other : other + rng.choice([1, 16, 512, 2048])] + data[start:]


DAMAGE = [flip, cut, overwrite, remove, splice]


@pytest.mark.parametrize("extension", FILES)
def test_a_file_damaged_before_it_was_indexed(extension: str) -> None:
    for number in range(400):
        rng = random.Random(f"{extension}/{number}")
        blob = rng.choice(DAMAGE)(rng, FILES[extension])
        record = Record("key", {extension: Member(0, len(blob), zlib.crc32(blob))})
        decode.size(blob)
        try:
            decode.sample(record, {extension: memoryview(blob)}, shard="x.tar", fit=(9, 9))
        except ShardError as err:
            assert f"x.tar: key.{extension} cannot be decoded" in str(err)


# Tars that were damaged after they were indexed: the index tells what is lost


def blocks(rng: random.Random, data: bytes) -> bytes:
    """A run of whole blocks lands elsewhere: headers stay headers, and members appear twice."""
    count = len(data) // 512
    start, length, to = rng.randrange(count), rng.randrange(1, 9), rng.randrange(count)
    run = data[start * 512 : (start + length) * 512]
    kept = data[(to + rng.choice([0, length])) * 512 :]
    return data[: to * 512] + run + kept


def unfinished(rng: random.Random, data: bytes) -> bytes:
    """A download into reserved space that stopped."""
    end = rng.randrange(len(data))
    end -= rng.choice([0, end % 512])
    return data[:end] + bytes(len(data) - end)


def members(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of each member with its headers and its padding."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
    starts = [info.offset for info in infos]
    last = infos[-1].offset_data + -(-infos[-1].size // 512) * 512
    return list(zip(starts, [*starts[1:], last], strict=True))


PLACES = [members(tar) for tar in TARS]


def twice(rng: random.Random, data: bytes) -> bytes:
    """A member is there twice, at its place or at another's."""
    places = PLACES[TARS.index(data)]
    start, end = rng.choice(places)
    at = rng.choice([end, *rng.choice(places)])
    return data[:at] + data[start:end] + data[at:]


def without(rng: random.Random, data: bytes) -> bytes:
    start, end = rng.choice(PLACES[TARS.index(data)])
    return data[:start] + data[end:]


def reheaded(rng: random.Random, data: bytes) -> bytes:
    """A header with other bytes and a checksum that fits."""
    start = rng.choice(PLACES[TARS.index(data)])[0]
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        damaged[start + rng.choice([*range(8), *range(124, 160), 257, 345])] = rng.randrange(256)
    return sealed(damaged, start)


def sealed(data: bytearray, start: int = 0) -> bytes:
    """The tar with the header at `start` given the checksum of its bytes."""
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


TAR_DAMAGE = [*DAMAGE, blocks, unfinished, twice, without, reheaded]


def lost(data: bytes, rows: list[Row]) -> list[str]:
    """The keys of samples of which any byte is not what it was."""
    return [
        record.key
        for record, blobs in rows
        if any(data[m.offset : m.offset + m.size] != blobs[e] for e, m in record.members.items())
    ]


@pytest.mark.parametrize("damage", TAR_DAMAGE)
def test_a_tar_damaged_after_it_was_indexed(damage: Any) -> None:
    losses = 0
    for number in range(350):
        rng = random.Random(f"{damage.__name__}/{number}")
        which = rng.randrange(2)
        data = damage(rng, TARS[which])
        read(data)
        skipped: list[str] = []
        for record, blobs in INDEXED[which]:
            there = {e: data[m.offset : m.offset + m.size] for e, m in record.members.items()}
            try:
                found = decode.sample(record, there, shard="x.tar")
            except CrcError:
                skipped.append(record.key)
            else:
                assert there == blobs
                assert found["image"] is not None
        assert skipped == lost(data, INDEXED[which])
        losses += len(skipped)
    assert losses > 100 or damage is reheaded


@pytest.mark.parametrize("damage", TAR_DAMAGE)
def test_a_check_finds_every_loss(damage: Any, tmp_path: Path) -> None:
    url, rows = str(tmp_path / "x.tar"), INDEXED[0]
    storage.write(url, TARS[0])
    manifest = index.build([url])
    for number in range(60):
        rng = random.Random(f"check/{damage.__name__}/{number}")
        data = damage(rng, TARS[0])
        Path(url).write_bytes(data)
        found = check(manifest)
        missing = lost(data, rows)
        assert found.good <= len(rows) - len(missing)
        assert found.good + found.reasons.total() >= len(rows)
        assert bool(missing) <= bool(found.faults)
        assert all("x.tar" in sentence for _, sentence in found.faults)
        if damage is cut and data[: PLACES[0][-1][1]] != TARS[0][: PLACES[0][-1][1]]:
            assert found.good == len(rows) - len(missing)


def test_a_stream_steps_over_exactly_what_is_damaged(
    samples: Callable[..., list[Sample]], dataset: Callable[..., Manifest], text: Text
) -> None:
    rng = random.Random(0)
    manifest = dataset([samples(50, first=50 * number) for number in range(6)])
    truth: set[str] = set()
    for shard in manifest.shards:
        path = storage.local_path(shard.url)
        data, before = bytearray(Path(path).read_bytes()), os.stat(path)
        rows = list(scan(io.BytesIO(bytes(data)), shard=shard.url))
        for record, _ in rng.sample(rows, 17):
            member = rng.choice(list(record.members.values()))
            data[member.offset + rng.randrange(member.size)] ^= 1 << rng.randrange(8)
            truth.add(f"{storage.name(shard.url)}/{record.key}")
        Path(path).write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk does it
    plan = Plan(manifest, 0, 20)
    holes = Holes(plan, Budget(shard=1, source=1))
    recipe, seen = Recipe(text="txt", image_size=8, seed=0), dict[str, bool]()
    for _, batch in Loader(plan, text, recipe, stop=15, holes=holes):
        left = [False] * batch.rows if batch.hole_B is None else batch.hole_B.tolist()
        seen |= dict(zip(batch.keys, left, strict=True))
    assert len(seen) == 300
    assert len(truth) == 102
    assert {key for key, hole in seen.items() if hole} == truth
    assert {f"{hole.shard}/{hole.key}" for hole in holes.turn()} == truth
