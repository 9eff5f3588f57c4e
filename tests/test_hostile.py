"""Tars and files that somebody made to do harm: each gives samples, or an error of ours."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from diptych.data import decode, index, storage
from diptych.data.records import Member, Record, scan
from diptych.errors import DiptychError, ShardError

pytestmark = [
    pytest.mark.usefixtures("bounded_memory"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's and NumPy's own, about damaged files
]

Bytes = dict[int, bytes]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No name in any tar leads to a file."""
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    yield
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["here"]


# Tars written by hand, header by header


def header(
    name: bytes, size: bytes, kind: bytes = b"0", link: bytes = b"", more: Bytes | None = None
) -> bytes:
    """512 bytes with a checksum that fits; `more` are bytes by their place."""
    block = bytearray(512)
    fields = {0: name[:100], 100: b"0000644\0", 124: size[:12], 156: kind, 157: link[:100]}
    fields |= {257: b"ustar\x0000"} | (more or {})
    for place, value in fields.items():
        block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def base_256(size: int) -> bytes:
    lead = b"\x80" if size >= 0 else b"\xff"
    return lead + size.to_bytes(11, "big", signed=size < 0)


def data(blob: bytes) -> bytes:
    return blob + bytes(-len(blob) % 512)


def member(name: bytes, blob: bytes, kind: bytes = b"0") -> bytes:
    return header(name, octal(len(blob)), kind) + data(blob)


def ended(*pieces: bytes) -> bytes:
    whole = b"".join([*pieces, bytes(1024)])
    return whole + bytes(-len(whole) % 10_240)


NAMES = [
    *(b"/etc/passwd.txt", b"../../up.txt", b"a/../../b.txt", b"//x.txt", b"./.././y.txt"),
    *(
        b"a\0b.txt",
        b"\xff\xfe.txt",
        b"\xed\xa0\x80.txt",
        b"a\nb.txt",
        b"\x1b[31mred.txt",
        b"\r.txt",
    ),
    *(b".hidden", b".txt", b"a.", b"a..txt", b"", b".", b"..", b"/", b"no extension", b"a.TXT"),
    *(b"pipe:touch x.txt", b"${HOME}.txt", b"%s%n.txt", b"__meta__", b"__meta__/a.txt"),
    *(b"n" * 100, b"n" * 96 + b".txt"),
    *("\u202etxt.a".encode(), "\U0001f600.txt".encode(), b"first.txt", b"a.__key__", b"a.jpg"),
]
LONG = [
    b"n" * 300 + b".txt",
    b"d/" * 5000 + b"a.txt",
    b"\xff" * 300,
    b"",
    b"a" * 70_000,
    b"x\0y.txt",
]
SIZES = [
    *(octal(5), octal(0), octal(513), octal(8**11 - 1), base_256(5), base_256(2**33)),
    *(base_256(2**63), base_256(2**63 - 1), base_256(2**64 + 5), base_256(2**87)),
    *(base_256(-1), base_256(-512), base_256(-(2**63)), b"-0000000001\0", b"99999999999\0"),
    *(b" " * 12, b"\0" * 12, b"\xff" * 12, b"\x80" * 12, b"0x10", b"1_0", b"5", b"        5 \0"),
]
KINDS = [bytes([byte]) for byte in b"\x000123456789LKxXgSNVMDAZ~\xff"]
PAX = [
    *(("size", b"-1"), ("size", b"9" * 25), ("size", b"1e3"), ("size", b"nan"), ("size", b"7")),
    *(("path", b"../../x.txt"), ("path", b"a\0b.txt"), ("path", b""), ("path", b"\xff\xfe.txt")),
    *(("path", b"p" * 300 + b".txt"), ("linkpath", b"/etc/passwd"), ("mtime", b"inf")),
    *(("mtime", b"1e999"), ("uid", b"-1"), ("gid", b"x"), ("hdrcharset", b"BINARY")),
    *(("GNU.sparse.map", b"0,1,2"), ("GNU.sparse.map", b"x"), ("GNU.sparse.map", b"0,-5,3,99")),
    *(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"../y.txt")),
    *(("GNU.sparse.realsize", b"9" * 30), ("GNU.sparse.size", b"-5"), ("GNU.sparse.size", b"4")),
    *(("GNU.sparse.offset", b"1"), ("GNU.sparse.numbytes", b"2"), ("comment", b"c" * 3000)),
]


def pax(rng: random.Random) -> bytes:
    records = b""
    for name, value in rng.sample(PAX, rng.randrange(1, 4)):
        body = b" " + name.encode() + b"=" + value + b"\n"
        length = len(body) + len(str(len(body) + 3))
        lie = rng.choice([*[length] * 6, length - 1, length + 1, 0, -3, 99_999, 10**30])
        records += str(lie).encode() + body
    kind = rng.choice([b"x", b"x", b"g"])
    size = rng.choice([*[octal(len(records))] * 6, *SIZES])
    return header(b"PaxHeaders/a", size, kind) + data(records)


def long_name(rng: random.Random) -> bytes:
    name = rng.choice(LONG)
    size = rng.choice([*[octal(len(name) + 1)] * 6, *SIZES])
    return header(b"././@LongLink", size, rng.choice([b"L", b"K"])) + data(name + b"\0")


def sparse(rng: random.Random) -> bytes:
    """An old GNU sparse member with a map of random lies."""
    numbers = [rng.choice(SIZES) for _ in range(8)]
    more = {386: b"".join(numbers), 482: rng.choice([b"\0", b"\1"])}
    return header(b"s.txt", rng.choice(SIZES), b"S", more=more) + data(b"hello")


def odd(rng: random.Random) -> bytes:
    blob = rng.choice([b"", b"hello", b"x" * 700, header(b"inner.txt", octal(0))])
    size = rng.choice([*[octal(len(blob))] * 4, rng.choice(SIZES)])
    kind = rng.choice([*[b"0"] * 4, rng.choice(KINDS)])
    prefix = {345: rng.choice([b"", b"..", b"/", b"p" * 155, b"\xff"])}
    link = rng.choice([b"", b"first.txt", b"/etc/passwd", b"../../x"])
    return header(rng.choice(NAMES), size, kind, link, prefix) + data(blob)


def hostile(number: int) -> bytes:
    rng = random.Random(number)
    pieces = [
        rng.choice([odd, odd, long_name, pax, sparse])(rng) for _ in range(rng.randrange(1, 7))
    ]
    return ended(member(b"first.txt", b"1"), *pieces, member(b"last.txt", b"2"))


def scanned(tar: bytes) -> tuple[list[tuple[str, dict[str, bytes]]], DiptychError | None]:
    rows: list[tuple[str, dict[str, bytes]]] = []
    try:
        for record, blobs in scan(io.BytesIO(tar), shard="x.tar"):
            places = record.members
            assert {e: tar[m.offset : m.offset + m.size] for e, m in places.items()} == blobs
            rows.append((record.key, blobs))
            decode.sample(record, blobs, shard="x.tar")
    except ShardError as err:
        assert "x.tar" in str(err)
        return rows, err
    return rows, None


def webdataset(tar: bytes) -> list[tuple[str, dict[str, bytes]]]:
    opened = [{"url": "x.tar", "stream": io.BytesIO(tar)}]
    rows: list[dict[str, Any]] = list(group_by_keys(tar_file_expander(opened)))
    return [
        (
            row["__key__"].encode(errors="surrogateescape").decode(errors="backslashreplace"),
            {e: b for e, b in row.items() if e not in ("__key__", "__url__")},
        )
        for row in rows
    ]


@pytest.mark.parametrize("part", range(10))
def test_a_hostile_tar_is_read_as_webdataset_reads_it_or_refused(part: int) -> None:
    refused = 0
    for number in range(part * 250, part * 250 + 250):
        tar = hostile(number)
        rows, err = scanned(tar)
        assert rows[0][1].get("txt", b"1") == b"1"  # what lies before is read
        refused += err is not None
        if err is None:
            assert rows == webdataset(tar)
    assert 20 < refused < 230


def test_a_hostile_tar_is_indexed_or_refused(tmp_path: Path) -> None:
    indexed = 0
    url = str(tmp_path / "x.tar")
    for number in range(250):
        tar = hostile(number)
        storage.write(url, tar)
        try:
            manifest = index.build([url])
        except DiptychError as err:
            assert "x.tar" in str(err)
        else:
            records = [entry.record for entry in index.entries(manifest, manifest.shards[0])]
            assert records == [record for record, _ in scan(io.BytesIO(tar), shard="x.tar")]
            indexed += 1
    assert indexed > 20


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_headers_of_headers_without_end_are_an_error(kind: bytes) -> None:
    piece = member(b"long", b"10 path=a\n", kind)
    _, err = scanned(ended(member(b"first.txt", b"1"), piece * 3000, member(b"last.txt", b"2")))
    assert isinstance(err, ShardError)


# Files that are small and mean to become large


def chunk(kind: bytes, blob: bytes) -> bytes:
    return struct.pack(">I", len(blob)) + kind + blob + struct.pack(">I", zlib.crc32(kind + blob))


def png(width: int, height: int, *more: bytes, rows: bytes = b"") -> bytes:
    rows = rows or zlib.compress(bytes((width // 8 + 2) * height), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    body = head + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deflated(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(megabytes)) + packer.flush()


def webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    blob = bytearray(buffer.getvalue())
    assert blob[12:16] == b"VP8X"
    blob[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(blob)


def npy(text: str, body: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    packed = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + packed + text.encode() + body


def shaped(shape: str, dtype: str = "'<f4'") -> bytes:
    return npy(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n")


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "gigantic": ("png", lambda: png(13_300, 13_300), "13300 x 13300 pixels are more than"),
    "2^31": ("png", lambda: png(2**31 - 1, 2**31 - 1, rows=b"x"), "pixels"),
    "colours": ("png", lambda: png(8, 8, chunk(b"iCCP", b"x\0\0" + deflated(100))), "too large"),
    "text": ("png", lambda: png(8, 8, chunk(b"zTXt", b"x\0\0" + deflated(100))), "too large"),
    "international": (
        *("png", lambda: png(8, 8, chunk(b"iTXt", b"x\0\1\0\0\0" + deflated(100)))),
        "too large",
    ),
    "texts": ("png", lambda: png(8, 8, chunk(b"zTXt", b"x\0\0" + deflated(1)) * 200), "memory"),
    "rows": ("png", lambda: png(8, 8, rows=deflated(100)), ""),
    "canvas": ("webp", lambda: webp(16_384, 16_384), "more than 64,000,000"),
    "wide canvas": ("webp", lambda: webp(16_000, 4_001), "."),
    "nested": ("json", lambda: b'{"a":' * 100_000, "recursion"),
    "nested lists": ("json", lambda: b'{"a":' + b"[" * 5_000_000, "recursion"),
    "digits": ("json", lambda: b'{"a":' + b"9" * 100_000 + b"}", "digits"),
    "long": ("json", lambda: b'{"a":"' + b"x" * (17 * MIB) + b'"}', "more than 16,777,216"),
    "half": ("json", lambda: rb'{"a": ["\uD800"]}', "surrogates not allowed"),
    "surrogate": ("json", lambda: b'{"a": "\xed\xa0\x80"}', "utf-8"),
    "infinite": ("json", lambda: b'{"a": NaN, "b": -Infinity}', ""),
    "class": ("cls", lambda: b"9" * 100_000, "digits"),
    "book": ("txt", lambda: b"x" * (17 * MIB), "more than 16,777,216"),
    "shape": ("npy", lambda: shaped("(1000000000000,)"), "not those of"),
    "shape of shapes": ("npy", lambda: shaped(f"({2**62}, {2**62})"), "not those of"),
    "nothing of much": ("npy", lambda: shaped(f"(0, {2**40})"), ""),
    "nothing of too much": ("npy", lambda: shaped(f"(0, {2**70})"), "."),
    "negative": ("npy", lambda: shaped("(-1, -2)") + bytes(8), "."),
    "text for a number": ("npy", lambda: shaped("('1',)"), "not valid"),
    "wide": ("npy", lambda: shaped("(1000,)", "'V2147483647'"), "not those of"),
    "objects": ("npy", lambda: shaped("(1,)", "'|O'") + bytes(8), "never unpickled"),
    "hidden objects": (
        *("npy", lambda: shaped("(1,)", "[('a', [('b', '|O')])]") + bytes(8)),
        "never unpickled",
    ),
    "header": ("npy", lambda: npy("(" * 3000 + "\n"), "."),
    "large header": ("npy", lambda: npy(" " * 5_000_000 + "\n", version=2), "large"),
    "promised header": ("npy", lambda: npy("{}", version=2, length=2**32 - 1), "EOF"),
    "version": ("npy", lambda: npy("{}", version=9), "."),
    "pickle": ("npy", lambda: b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "magic"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_defused(name: str) -> None:
    extension, make, reason = BOMBS[name]
    blob = make()
    members = {extension: Member(0, len(blob), zlib.crc32(blob))}
    decode.size(blob)
    if not reason:
        assert decode.sample(Record("key", members), {extension: blob}, shard="x.tar")
        return
    with pytest.raises(
        ShardError, match=rf"x\.tar: key\.{extension} cannot be decoded: .*{reason}"
    ):
        decode.sample(Record("key", members), {extension: blob}, shard="x.tar")


def test_the_gigantic_png_is_small() -> None:
    assert len(png(13_300, 13_300)) < 25_000


def test_the_largest_image_allowed_fits_in_memory() -> None:
    for format in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.new("RGB", (8000, 8000), (1, 2, 3)).save(buffer, format, compress_level=1)
        assert decode.image(buffer.getvalue())[1] == (8000, 8000)


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "|u1", "<f2", "<U3", "<M8[s]", "?", "<c8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(
    dtype: str, shape: tuple[int, ...], order: Any
) -> None:
    array = np.ones(shape, np.dtype(dtype), order=order)
    buffer = io.BytesIO()
    np.save(buffer, array)
    found = decode.array(memoryview(b"x" + buffer.getvalue())[1:])
    assert (found.dtype, found.shape) == (array.dtype, shape)
    assert (found == array).all()
    assert found.flags.writeable
    assert found.flags.owndata
