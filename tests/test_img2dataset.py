"""The output of img2dataset, read as it is: `00000.tar`, `00000.parquet`, `00000_stats.json`."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from diptych.data import index, loader, preview, storage, stream
from diptych.data.check import check
from diptych.data.loader import Recipe
from diptych.data.tokens import Text
from diptych.data.verbs import app

Layout = Callable[[str], None]


def record(key: str, blob: bytes, caption: str | None, size: tuple[int, int]) -> dict[str, Any]:
    """What img2dataset 1.45 writes about a sample, in its order."""
    return {
        "url": f"https://example.org/{key}.jpg?w=1&h=2",
        "caption": caption,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": size[0],
        "height": size[1],
        "original_width": size[0] * 4,
        "original_height": size[1] * 4,
        "exif": json.dumps({"Image Orientation": "Horizontal (normal)"}),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "similarity": 0.31,
    }


def shard(number: int, count: int) -> tuple[bytes, list[dict[str, Any]]]:
    """A tar as img2dataset's WebDataset writer makes it; every third download has failed."""
    buffer, rows = io.BytesIO(), list[dict[str, Any]]()
    with tarfile.open(fileobj=buffer, mode="w|") as archive:
        for place in range(count):
            key = f"{number:05d}{place:04d}"
            picture = io.BytesIO()
            size = (32 + place, 24)
            Image.new("RGB", size, (place * 9, number, 0)).save(picture, "JPEG", quality=95)
            caption = None if place == 1 else f"picture number {place}"
            row = record(key, picture.getvalue(), caption, size)
            if place % 3 == 2:
                rows.append({**row, "status": "failed_to_download", "error_message": "HTTP 404"})
                continue
            rows.append(row)
            text = "" if caption is None else caption
            members = {"jpg": picture.getvalue(), "txt": text.encode()}
            members["json"] = json.dumps(row, indent=4).encode()
            for extension in sorted(members):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime, info.mode = len(members[extension]), 1795416597.25, 0o444
                info.uname, info.gname = "bigdata", "bigdata"
                archive.addfile(info, io.BytesIO(members[extension]))
    return buffer.getvalue(), rows


@pytest.fixture(params=["disk", "bucket"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Three shards of 9 rows, 6 of them downloaded, at a URL."""
    where = str(tmp_path / "set")
    if request.param == "bucket":
        where = f"{request.getfixturevalue('bucket')}/img2dataset"
    for number in range(3):
        blob, rows = shard(number, 9)
        storage.write(f"{where}/{number:05d}.tar", blob)
        table = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        storage.write(f"{where}/{number:05d}.parquet", table.getvalue())
        stats = {"count": 9, "successes": 6, "failed_to_download": 3, "status_dict": {}}
        storage.write(f"{where}/{number:05d}_stats.json", json.dumps(stats).encode())
    return where


KEYS = [f"{number:05d}{place:04d}" for number in range(3) for place in range(9) if place % 3 != 2]


def test_img2dataset_output_is_read_as_it_is(layout: str, text: Text) -> None:
    assert CliRunner().invoke(app, ["index", f"{layout}/*.tar"]).exit_code == 0
    manifest = index.open_manifest(layout)
    assert [storage.name(shard.url) for shard in manifest.shards] == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    found = check(manifest)
    assert (found.good, found.reasons, found.replaced) == (18, {}, 0)
    lines = index.entries(manifest, manifest.shards[0])
    assert [(e.width, e.height, e.text_chars) for e in lines[:2]] == [(32, 24, 16), (33, 24, 0)]
    recipe = Recipe(text="caption", image_size=16, seed=0, needs=frozenset({"image"}))
    batches = list(loader.once(manifest, text, recipe, batch=5))
    rows = [row for batch in batches for row in zip(batch.keys, batch.fields, strict=True)]
    assert [key.rpartition("/")[2] for key, _ in rows] == KEYS
    assert all(fields["status"] == "success" and fields["key"] in key for key, fields in rows)
    assert preview.page(manifest, 18).count("<img ") == 18


def test_img2dataset_output_is_streamed_as_it_is(layout: str) -> None:
    samples = list(stream(f"{layout}/*.tar"))
    assert [sample["__key__"] for sample in samples] == KEYS
    for sample in samples:
        fields = json.loads(sample["json"])
        assert fields["sha256"] == hashlib.sha256(sample["jpg"]).hexdigest()
        assert (fields["caption"] or "").encode() == sample["txt"]
