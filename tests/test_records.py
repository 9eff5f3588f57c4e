import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from diptych.data import records
from diptych.errors import ShardError

Files = list[tuple[str, bytes | None]]
"""(name, bytes) of each member; None makes a folder."""


def pack(files: Files, format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, blob in files:
            info = tarfile.TarInfo(name)
            if blob is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob or b""))
    return buffer.getvalue()


def scan(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    found = list(records.scan(io.BytesIO(data), shard="x.tar"))
    for record, blobs in found:
        places = record.members
        assert {e: data[m.offset : m.offset + m.size] for e, m in places.items()} == blobs
        assert record.span()[0] == min(member.offset for member in places.values())
    return [(record.key, blobs) for record, blobs in found]


def webdataset(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    opened = [{"url": "x.tar", "stream": io.BytesIO(data)}]
    rows: list[dict[str, Any]] = list(group_by_keys(tar_file_expander(opened)))
    return [
        (row["__key__"], {e: b for e, b in row.items() if e not in ("__key__", "__url__")})
        for row in rows
    ]


KEYS = [
    "a",
    "b",
    "A",
    "dir/a",
    "dir.with.dots/a",
    "./c",
    "d" * 150,
    "e" * 90 + "/" + "f" * 200,
    "ü",
    "a b",
    "./dir.x/./a",
    "/absolute/a",
    "up/../a",
]
EXTENSIONS = ["jpg", "JPG", "txt", "seg.png", "tar.gz", "", "json"]
names = st.one_of(
    st.builds("{}.{}".format, st.sampled_from(KEYS), st.sampled_from(EXTENSIONS)),
    st.sampled_from(
        [
            *("noext", "dir/.hidden", "__meta__", "__meta__/a.txt", "dir/__x__.txt", "__a.b"),
            *(".txt", "./.hidden.txt", "dir.x/noext", "a..txt", "a.", "dir/", "A.B.c/d.E.f"),
        ]
    ),
)
blobs = st.one_of(st.none(), st.binary(max_size=20), st.sampled_from([bytes(512), bytes(1024)]))


@given(st.lists(st.tuples(names, blobs), max_size=12), st.sampled_from(["GNU", "PAX"]))
def test_a_healthy_tar_reads_as_webdataset_reads_it(files: Files, format: str) -> None:
    data = pack(files, getattr(tarfile, f"{format}_FORMAT"))
    try:
        expected = webdataset(data)
    except ValueError:
        with pytest.raises(ShardError, match="two members"):
            scan(data)
    else:
        assert scan(data) == expected


def test_a_tar_of_gnu_tar_reads_as_webdataset_reads_it(tmp_path: Path) -> None:
    for name in ("sub/one.jpg", "sub/one.txt", f"{'long' * 40}/two.seg.png", "three.cls"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    os.symlink("three.cls", tmp_path / "four.cls")
    for format in ("gnu", "pax", "oldgnu"):
        made = subprocess.run(
            ["tar", "-C", tmp_path, "--format", format, "--sort=name", "-cf", "-", "."],
            capture_output=True,
            check=True,
        )
        found = scan(made.stdout)
        assert found == webdataset(made.stdout)
        assert [key.rpartition("/")[2] for key, _ in found] == ["two", "one", "three"]


def test_order_and_grouping_are_those_of_the_tar() -> None:
    data = pack([("b.txt", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("b.txt", b"4")])
    assert scan(data) == [
        ("b", {"txt": b"1", "jpg": b"2"}),
        ("a", {"txt": b"3"}),
        ("b", {"txt": b"4"}),
    ]


def test_a_name_that_is_not_utf8_stays_printable() -> None:
    data = pack([("\udcff.txt", b"1")])
    assert scan(data)[0][0].encode() == rb"\xff"


HEALTHY = pack(
    [
        ("a.jpg", b"\xff\xd8" * 300),
        ("a.txt", b"first"),
        ("g" * 120 + ".txt", b"a long name"),
        ("z.jpg", b"\1" * 512),
        ("z.txt", b"last"),
    ]
)


def test_a_tar_cut_anywhere_is_an_error_that_names_the_shard() -> None:
    end = len(HEALTHY.rstrip(b"\0"))
    end += -end % 512
    assert len(scan(HEALTHY[: end + 512])) == 3
    boundaries = {block + n for block in range(0, end + 1, 512) for n in (-1, 0, 1)}
    for cut in sorted({*range(0, end + 512, 37), *boundaries, end + 511} - {-1}):
        with pytest.raises(ShardError, match=r"x\.tar"):
            scan(HEALTHY[:cut])


def headers(data: bytes) -> list[int]:
    """Where each header begins, those of long names too."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
    return sorted({info.offset for info in infos} | {info.offset_data - 512 for info in infos})


def test_a_flipped_bit_in_a_header_is_an_error_or_changes_nothing() -> None:
    healthy = scan(HEALTHY)
    assert len(headers(HEALTHY)) == 6
    for start in headers(HEALTHY):
        for place in range(512):
            damaged = bytearray(HEALTHY)
            damaged[start + place] ^= 1 << (place % 8)
            if 148 <= place < 156:  # the checksum itself: its padding protects nothing
                try:
                    assert scan(bytes(damaged)) == healthy
                except ShardError:
                    continue
            else:
                with pytest.raises(ShardError, match=r"x\.tar"):
                    scan(bytes(damaged))


@given(st.data())
def test_random_damage_never_ends_in_another_error(data: st.DataObject) -> None:
    damaged = bytearray(HEALTHY)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.sampled_from(headers(HEALTHY)))
        damaged[start + data.draw(st.integers(0, 159))] = data.draw(st.integers(0, 255))
        damaged[start + 148 : start + 156] = b" " * 8  # with a checksum that fits again
        damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])
    try:
        list(records.scan(io.BytesIO(bytes(damaged)), shard="x.tar"))
    except ShardError as err:
        assert "x.tar" in str(err)


def test_a_size_beyond_all_memory_is_an_error() -> None:
    for start in headers(HEALTHY):
        damaged = bytearray(HEALTHY)
        damaged[start + 124 : start + 136] = b"\x80" + b"\x7f" * 11
        damaged[start + 148 : start + 156] = b" " * 8
        damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])
        with pytest.raises(ShardError, match=r"x\.tar"):
            scan(bytes(damaged))


LARGE = pack([(f"{number:03}.jpg", bytes([number + 1]) * 7000) for number in range(20)])


def test_a_download_that_stopped_in_reserved_space_is_an_error() -> None:
    for start in headers(LARGE)[:-1]:  # the last file alone is no more than padding could be
        with pytest.raises(ShardError, match="zeros at the end are more than tar writers pad with"):
            scan(LARGE[:start] + bytes(len(LARGE) - start))
    with pytest.raises(ShardError, match="zeros at the end"):
        scan(LARGE + bytes(5 << 20))


@pytest.mark.parametrize("blocks", [1, 2, 20, 32, 128, 2048])
def test_padding_of_every_usual_size_is_no_damage(blocks: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    made = subprocess.run(
        ["tar", "-C", tmp_path, "-b", str(blocks), "-cf", "-", "a.txt"],
        capture_output=True,
        check=True,
    )
    assert len(made.stdout) % (blocks * 512) == 0
    assert scan(made.stdout) == [("a", {"txt": b"a"})]
    whole = made.stdout[:1024] + bytes(1024)  # as Go and Rust write it
    assert scan(whole) == [("a", {"txt": b"a"})]


def test_names_that_webdataset_needs_are_refused() -> None:
    for name in ("a.__key__", "a.__url__"):
        with pytest.raises(ShardError, match=rf"'{name}': .* is WebDataset's own"):
            scan(pack([("a.txt", b"1"), (name, b"2")]))


def test_a_size_below_zero_does_not_lead_back() -> None:
    for kind in b"05Zx":
        damaged = bytearray(HEALTHY)
        damaged[156] = kind
        damaged[124:136] = b"\xff" * 10 + b"\xf8\x00"  # -2048 in base 256
        damaged[148:156] = b" " * 8
        damaged[148:156] = b"%06o\0 " % sum(damaged[:512])
        with pytest.raises(ShardError, match=r"x\.tar"):
            scan(bytes(damaged))


def test_what_lies_before_the_damage_is_still_read() -> None:
    where = HEALTHY.index(b"\1" * 512)
    reader = records.scan(io.BytesIO(HEALTHY[: where + 100]), shard="x.tar")
    assert [next(reader)[0].key, next(reader)[0].key] == ["a", "g" * 120]
    with pytest.raises(ShardError, match=r"cut short in member 'z\.jpg': 100 of 512 bytes"):
        next(reader)


@pytest.mark.parametrize("data", [b"", b"no tar", b"x" * 2048, b"\x1f\x8b" + bytes(1000)])
def test_what_is_no_tar_is_an_error(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"x\.tar is not a readable tar"):
        scan(data)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_called_so(pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ShardError, match=r"compressed with \w+\. .* unpack it first"):
        scan(pack(HEALTHY))


def test_what_follows_the_mark_of_the_end_is_not_lost_in_silence() -> None:
    for more in (HEALTHY, b"garbage"):
        with pytest.raises(ShardError, match="something follows the end-of-archive mark"):
            scan(HEALTHY + more)


def test_a_sparse_member_is_refused_and_not_lost() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(info)
    with pytest.raises(ShardError, match=r"'a\.jpg' is sparse"):
        scan(buffer.getvalue())
