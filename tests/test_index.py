import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.data import index, storage
from diptych.data.buckets import Buckets
from diptych.data.index import Manifest
from diptych.data.pack import Sample, tar
from diptych.data.plan import Plan
from diptych.errors import ShardError, StaleIndexError, StorageError

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


def bytes_by_index(manifest: Manifest) -> list[tuple[str, dict[str, bytes]]]:
    """Every sample of a dataset, read through its index alone."""
    return [
        (
            entry.record.key,
            {
                extension: storage.read(shard.url, member.offset, member.offset + member.size)
                for extension, member in entry.record.members.items()
            },
        )
        for shard in manifest.shards
        for entry in index.entries(manifest, shard)
    ]


def test_an_index_leads_to_the_bytes_that_were_packed(samples: Samples, dataset: Dataset) -> None:
    built = dataset([samples(3), samples(2, first=3)])
    opened = index.open_manifest(built.url.removesuffix("/index"))
    assert opened == built == index.open_manifest(built.url)
    assert opened.samples == 5
    assert bytes_by_index(opened) == samples(5)
    first = index.entries(opened, opened.shards[0])[0]
    assert (first.width, first.height) == (8, 8)
    assert first.text_chars == len("a picture with number 0")


def test_an_index_may_lie_elsewhere(tmp_path: Path, samples: Samples, dataset: Dataset) -> None:
    url = dataset([samples(3)]).shards[0].url
    other = index.build([url], str(tmp_path / "elsewhere"))
    assert bytes_by_index(index.open_manifest(str(tmp_path / "elsewhere"))) == samples(3)
    assert other.shards[0].url == url


def test_the_digest_is_that_of_the_samples_not_of_the_place(
    tmp_path: Path, samples: Samples, dataset: Dataset
) -> None:
    built = dataset([samples(3), samples(2)])
    shutil.move(tmp_path / "set", tmp_path / "moved")
    moved = index.open_manifest(str(tmp_path / "moved"))
    assert moved.digest == built.digest
    assert bytes_by_index(moved) == [*samples(3), *samples(2)]
    assert index.build([shard.url for shard in moved.shards]) == moved


def test_the_digest_changes_with_any_sample(samples: Samples, dataset: Dataset) -> None:
    changed = samples(3)
    changed[1][1]["txt"] = changed[1][1]["txt"].replace(b"1", b"7")
    renamed = [("other", samples(1)[0][1]), *samples(2, first=1)]
    versions = [samples(3), changed, renamed, samples(2), samples(3)[::-1]]
    digests = [dataset([found], folder=f"v{i}").digest for i, found in enumerate(versions)]
    assert len(set(digests)) == len(versions)
    assert dataset([samples(3)], folder="again").digest == digests[0]


def test_an_unchanged_shard_is_not_read_again(samples: Samples, dataset: Dataset) -> None:
    built = dataset([samples(3), samples(2)])
    first, second = (storage.local_path(shard.url) for shard in built.shards)
    was = first.stat()
    first.write_bytes(b"\0" * was.st_size)  # would be an error if it were read
    os.utime(first, ns=(was.st_atime_ns, was.st_mtime_ns))
    second.write_bytes(tar(samples(4)))
    again = index.build([shard.url for shard in built.shards])
    assert again.shards[0] == built.shards[0]
    assert again.shards[1].samples == 4
    os.utime(first)
    with pytest.raises(ShardError, match=r"00000\.tar holds no samples"):
        index.build([shard.url for shard in built.shards])


def test_what_an_interrupted_run_has_finished_is_kept(samples: Samples, dataset: Dataset) -> None:
    built = dataset([samples(3), samples(2)])
    first, second = (storage.local_path(shard.url) for shard in built.shards)
    storage.delete(built.url)
    second.write_bytes(second.read_bytes()[:700])
    with pytest.raises(ShardError, match=r"00001\.tar"):
        index.build([shard.url for shard in built.shards], threads=1)
    with pytest.raises(StaleIndexError, match="has no index"):
        index.open_manifest(built.url)
    was = first.stat()
    first.write_bytes(b"\0" * was.st_size)
    os.utime(first, ns=(was.st_atime_ns, was.st_mtime_ns))
    second.write_bytes(tar(samples(2)))
    assert index.build([shard.url for shard in built.shards]).digest == built.digest


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", b'{"url": 3}'])
@pytest.mark.parametrize("name", ["00000.tar.jsonl.gz", "00000.tar.json"])
def test_indexing_again_mends_a_damaged_index(
    samples: Samples, dataset: Dataset, name: str, damage: bytes
) -> None:
    built = dataset([samples(3)])
    storage.write(storage.join(built.url, name), damage)
    assert index.build([built.shards[0].url]).digest == built.digest
    assert bytes_by_index(index.open_manifest(built.url)) == samples(3)


def test_lines_of_another_shard_are_stale(samples: Samples, dataset: Dataset) -> None:
    built = dataset([samples(3), samples(3)])
    lines = storage.local_path(built.lines_url(built.shards[0]))
    other = gzip.decompress(lines.read_bytes()).replace(b"000001", b"000007")
    lines.write_bytes(gzip.compress(other))
    with pytest.raises(StaleIndexError, match=r"jsonl\.gz is not what its manifest names"):
        index.entries(built, built.shards[0])
    assert len(index.entries(built, built.shards[1])) == 3


def test_a_damaged_manifest_is_an_error(samples: Samples, dataset: Dataset) -> None:
    built = dataset([samples(3)])
    place = storage.join(built.url, "manifest.json")
    body = json.loads(storage.read(place))
    for damage in (
        b"",
        b"[]",
        b"\x80" + pickle.dumps(body),
        json.dumps(body)[:-9].encode(),
        json.dumps({**body, "shards": [{"url": "x"}]}).encode(),
        json.dumps({**body, "shards": []}).encode(),
        json.dumps({**body, "format": 99}).encode(),
    ):
        storage.write(place, damage)
        with pytest.raises(StaleIndexError, match=r"manifest\.json"):
            index.open_manifest(built.url)


def test_without_an_index_the_way_to_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"")
    with pytest.raises(StaleIndexError, match=rf"diptych data index 'file://{tmp_path}'"):
        index.open_manifest(str(tmp_path))
    with pytest.raises(StaleIndexError, match=r"diptych data index 'file://.*/00000\.tar'"):
        index.open_manifest(str(tmp_path / "00000.tar"))


def test_two_shards_of_one_name_are_refused(tmp_path: Path, samples: Samples) -> None:
    urls = [str(tmp_path / folder / "00000.tar") for folder in ("a", "b")]
    for url in urls:
        storage.write(url, tar(samples(2)))
    with pytest.raises(ShardError, match=r"two shards are called '00000\.tar'"):
        index.build(urls)


def test_a_shard_that_is_not_there_is_an_error(samples: Samples, dataset: Dataset) -> None:
    url = dataset([samples(3)]).shards[0].url
    with pytest.raises(StorageError, match=r"00001\.tar: not there"):
        index.build([url, url.replace("00000", "00001")])


def test_an_image_without_a_readable_header_is_indexed_without_a_size(dataset: Dataset) -> None:
    built = dataset([[("a", {"jpg": b"no image"}), ("b", {"txt": "zwölf".encode()})]])
    found = index.entries(built, built.shards[0])
    assert [(entry.width, entry.text_chars) for entry in found] == [(None, 0), (None, 5)]


@pytest.mark.parametrize("name", ["A.TAR", "shard-0000"])
def test_a_shard_may_be_called_otherwise(tmp_path: Path, samples: Samples, name: str) -> None:
    storage.write(str(tmp_path / name), tar(samples(2)))
    built = index.build(storage.shards(str(tmp_path / name)))
    assert built.url == f"file://{tmp_path}/index"
    assert bytes_by_index(index.open_manifest(str(tmp_path))) == samples(2)
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "index").glob(f"{name}*"))
    assert index.build([str(tmp_path / name)]) == built
    after = sorted(path.stat().st_mtime_ns for path in (tmp_path / "index").glob(f"{name}*"))
    assert before == after, "it was read again"


def test_no_index_is_written_to_a_web_server() -> None:
    with pytest.raises(StorageError, match=r"https://host/set/index: .* Give --out FOLDER"):
        index.build(["https://host/set/0.tar?signature=abc"])


def test_a_bit_flipped_on_its_way_is_right_the_second_time(
    samples: Samples, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    built, table = dataset([samples(9)]), Buckets(lengths=(23,))
    counts = Plan(built, 0, 3, buckets=table).table()
    read, flips = storage.read, list[str]()

    def flipped(url: str, *range_: int) -> bytes:
        data = bytearray(read(url, *range_))
        flips.append(url)
        data[len(data) // 2] ^= 128 if len(flips) == 1 else 0
        return bytes(data)

    monkeypatch.setattr(storage, "read", flipped)
    for use in (
        lambda: index.open_manifest(built.url) == built,
        lambda: len(index.entries(built, built.shards[0])) == 9,
        lambda: Plan(built, 0, 3, buckets=table).table() == counts,
    ):
        flips.clear()
        assert use()
        assert flips[0] == flips[1]
    assert not caplog.records


@pytest.mark.parametrize("size", [0, 30, -30])
def test_a_damaged_bucket_table_is_counted_again(
    size: int, samples: Samples, dataset: Dataset, caplog: Any
) -> None:
    built, table = dataset([samples(9)]), Buckets(lengths=(23,))
    counts = Plan(built, 0, 3, buckets=table).table()
    (kept,) = Path(built.url.removeprefix("file://")).glob("buckets-*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:size])
    assert Plan(built, 0, 3, buckets=table).table() == counts
    assert "is damaged; it is counted again" in caplog.text
    assert kept.read_bytes() == whole
