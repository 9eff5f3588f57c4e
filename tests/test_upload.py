"""Files that go to a bucket in parts, on good days and on bad ones."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import FaultProxy, proxied

from diptych.data import storage, upload
from diptych.data.pack import Sample, Shape, given, pack_items
from diptych.errors import DataError, StorageError

BLOB = os.urandom(13 << 20)


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The bucket's server behind a proxy; parts are as small as S3 allows."""
    monkeypatch.setattr(upload, "PART", 5 << 20)
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as (proxy, url):
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            storage.forget_filesystems()
            storage.write(f"{bucket}/.ready", b"")  # a server that has answered is waited for
            yield proxy
        storage.forget_filesystems()


def write(url: str, blob: bytes) -> None:
    with storage.writing(url) as file:
        for first in range(0, len(blob), 1 << 20):
            file.write(blob[first : first + (1 << 20)])
        assert file.tell() == len(blob)


@pytest.mark.parametrize("size", [0, 1, 5 << 20, 10 << 20, 13 << 20])
def test_parts_make_the_object(proxy: FaultProxy, bucket: str, size: int) -> None:
    write(f"{bucket}/parts/{size}", BLOB[:size])
    assert storage.read(f"{bucket}/parts/{size}") == BLOB[:size]
    parts = [line.split()[1] for line in proxy.heard if "partNumber" in line.split("\n")[0]]
    assert len(parts) == (0 if size < 5 << 20 else -(-size // (5 << 20)))


@pytest.mark.parametrize("kind", ["slowdown", "error", "busy", "reset"])
def test_a_fault_that_passes_is_waited_for(proxy: FaultProxy, bucket: str, kind: str) -> None:
    proxy.faults(kind, first=2, methods="PUT")
    write(f"{bucket}/faults/{kind}", BLOB)
    assert proxy.seen[kind] == 2
    proxy.faults("")
    assert storage.read(f"{bucket}/faults/{kind}") == BLOB


@pytest.mark.parametrize("size", [1, 13 << 20])
def test_what_is_broken_off_is_not_there(proxy: FaultProxy, bucket: str, size: int) -> None:
    url = f"{bucket}/broken-off/{size}"
    with pytest.raises(KeyError), storage.writing(url) as file:
        file.write(BLOB[:size])
        raise KeyError
    assert not storage.exists(url)
    aborted = [line for line in proxy.heard if line.startswith("DELETE") and "uploadId" in line]
    assert len(aborted) == (1 if size > 5 << 20 else 0)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    url = f"{tmp_path}/a/b"
    with pytest.raises(KeyError), storage.writing(url) as file:
        file.write(b"half")
        assert not storage.exists(url)
        raise KeyError
    assert storage.children(f"{tmp_path}/a") == []
    write(url, BLOB)
    assert storage.read(url) == BLOB


def test_a_bucket_that_is_not_there_is_an_error(bucket: str) -> None:
    with pytest.raises(StorageError, match="no such bucket"):
        pack_items(map(given, [("a", {"txt": b"x"})]), "s3://there-is-none/x", Shape())


def test_a_source_that_fails_leaves_no_half_shard(proxy: FaultProxy, bucket: str) -> None:
    def samples() -> Iterator[Sample]:
        for number in range(20):
            yield f"{number}", {"bin": BLOB[: 1 << 20]}
        raise DataError("the table is damaged")

    out = f"{bucket}/half"
    with pytest.raises(DataError, match="the table is damaged"):
        pack_items(map(given, samples()), out, Shape(samples=12))
    assert [child for child in storage.children(out) if child.endswith(".tar")] == ["00000.tar"]
