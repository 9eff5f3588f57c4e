"""Large files past the page cache: whole, whatever their sizes, and where the disk cannot."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.data import disk, storage
from diptych.errors import StorageError
from diptych.pretrain import slices
from diptych.pretrain.slices import aligned, put_slices, raw


@pytest.mark.parametrize("size", [1, 1023, 1024, 5000, 3 << 20])
@pytest.mark.parametrize("head", [0, disk.PAGE, 17])
def test_every_byte_arrives(tmp_path: Path, size: int, head: int) -> None:
    data = aligned(size).copy_(torch.arange(size) % 1009)
    url = storage.absolute(str(tmp_path / "file"))
    storage.put(url, b"h" * head, [raw(data), raw(data)])
    assert storage.read(url) == b"h" * head + 2 * bytes(raw(data))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails_at", ["open", "pwrite"])
def test_a_disk_that_cannot_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    real, calls = getattr(os, fails_at), list[int]()

    def fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if fails_at == "open" else 2):
            raise OSError(errno.EINVAL, "not like this")
        return real(*args)

    monkeypatch.setattr(disk.os, fails_at, fails)
    monkeypatch.setattr(disk, "_SPAN", 1 << 20)
    data = aligned(1 << 20).copy_(torch.arange(1 << 20))
    storage.put(storage.absolute(str(tmp_path / "file")), b"", [raw(data)])
    assert calls
    assert (tmp_path / "file").read_bytes() == bytes(raw(data))


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "pwrite", full)
    with pytest.raises(StorageError, match=r"\bf: "):
        storage.put(storage.absolute(str(tmp_path / "f")), b"", [raw(aligned(4096).zero_())])
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_lie_together_are_written_as_one(tmp_path: Path) -> None:
    host = aligned(3000).copy_(torch.arange(3000))
    pieces = [("w", "weight", at, host[at : at + 1000]) for at in (0, 1000, 2000)]
    assert [len(view) for view in slices._body([piece[3] for piece in pieces])] == [12000]
    apart = [host[:10], host[20:30], torch.zeros(5)]
    assert [len(view) for view in slices._body(apart)] == [40, 40, 20]
    found = put_slices(storage.absolute(str(tmp_path)), "f.safetensors", pieces)
    assert found[0].start % disk.PAGE == 0
