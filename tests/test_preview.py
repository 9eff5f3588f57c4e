import base64
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych.data import preview, storage, survey
from diptych.data.buckets import Buckets
from diptych.data.index import Lines, Manifest, Shard
from diptych.data.pack import Sample
from diptych.data.verbs import app
from diptych.errors import RecipeError, StorageError

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_samples_evenly(samples: Samples, dataset: Dataset) -> None:
    manifest = dataset([samples(5), samples(7, first=5)])
    html = preview.page(manifest, 4)
    assert re.findall(r"(\d{5}\.tar/\d{6}) 8 x 8", html) == [
        "00000.tar/000000",
        "00000.tar/000003",
        "00001.tar/000006",
        "00001.tar/000009",
    ]
    page = Page(html)
    for words in ("12 samples in 2 shards", manifest.digest, "a picture with number 9", "4 shown"):
        assert words in page.text
    assert len(Page(preview.page(manifest, 100)).tags) == len(Page(preview.page(manifest, 12)).tags)


def test_the_pictures_are_in_the_page(samples: Samples, dataset: Dataset) -> None:
    page = Page(preview.page(dataset([samples(3)]), 3))
    sources = [value for name, value in page.attributes if name == "src"]
    colors: list[list[int]] = []
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            colors.append(np.asarray(image.convert("RGB"))[4, 4].astype(int).tolist())
    assert len(colors) == 3
    for number, color in enumerate(colors):
        expected = [number * factor % 256 for factor in (37, 91, 53)]
        assert max(abs(a - b) for a, b in zip(color, expected, strict=True)) < 20


def test_what_shards_say_is_never_markup(samples: Samples, dataset: Dataset) -> None:
    evil = '<script>alert("1")</script>'
    shard = [
        (f"a{evil.replace('/', '')}", {"txt": evil.encode(), "json": b'{"k": "<script>x"}'}),
        ("b", {"jpg": evil.encode()}),
        *samples(1),
    ]
    page = Page(preview.page(dataset([shard]), 3))
    assert page.text.count(evil) == 1
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_a_page_loads_nothing_from_elsewhere(samples: Samples, dataset: Dataset) -> None:
    html = preview.page(dataset([samples(3)]), 3)
    page = Page(html)
    assert not {"link", "script", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "href") or value.startswith("data:")
    assert "url(" not in html
    assert "@import" not in html


def test_a_sample_that_cannot_be_decoded_is_shown_as_such(
    samples: Samples, dataset: Dataset
) -> None:
    shard = samples(3)
    shard[1][1]["png"] = b"no image"
    page = Page(preview.page(dataset([shard]), 3))
    assert page.text.count("000001.png cannot be decoded") == 1
    assert page.tags.count("img") == 2


def test_a_missing_shard_is_an_error(samples: Samples, dataset: Dataset) -> None:
    manifest = dataset([samples(3)])
    storage.delete(manifest.shards[0].url)
    with pytest.raises(StorageError, match=r"00000\.tar: not there"):
        preview.page(manifest, 3)


def spaced(html: str) -> str:
    """The text of a page, the cells of its tables apart."""
    return " ".join(Page(html.replace("<t", " <t")).text.split())


def lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_what_was_left_out_is_told_by_reason(samples: Samples, dataset: Dataset) -> None:
    manifest = dataset([samples(3)])
    assert Page(preview.page(manifest, 1)).text.count("is not there or empty") == 2
    skipped = [{"input": f"in/{n}.jpg", "reason": "cannot be decoded", "detail": "d"} for n in "ab"]
    skipped += [{"input": f"{n}", "reason": "missing picture", "detail": ""} for n in range(70)]
    folder = manifest.url.removesuffix("/index")
    storage.write(f"{folder}/skipped.jsonl", lines(skipped) + b"torn lin")
    out = {"shard": "00000.tar", "key": "000001", "offset": 512, "reason": "<b>loss spike</b>"}
    storage.write(f"{manifest.url}/quarantine.jsonl", lines([out]))
    html = preview.page(manifest, 1)
    page = Page(html)
    words = spaced(html)
    assert "Reason Count missing picture 70 cannot be decoded 2 unreadable line 1" in words
    assert "The first 50 of 73" in words and "in/a.jpg" in words
    assert "<b>loss spike</b> 1" in words and "00000.tar 000001 512" in words
    assert "b" not in page.tags


def titles(html: str) -> dict[str, int]:
    """Counts of the bars of the charts that are not empty."""
    found = re.findall(r"<title>(.+?): (\d+)</title>", html)
    return {label: int(count) for label, count in found if count != "0"}


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_charts_and_buckets_count_the_index(dataset: Dataset) -> None:
    sizes = [(10, 10), (10, 10), (30, 20), (100, 10), (10, 100), (20, 30)]
    shard: list[Sample] = [
        (f"{n}", {"png": picture(*size), "txt": b"x" * (n * 20)}) for n, size in enumerate(sizes)
    ]
    shard.append(("no", {"json": b"{}"}))
    manifest = dataset([shard])
    html = preview.page(manifest, 7, Buckets(sizes=((10, 10), (30, 20))))
    assert titles(html) == {
        "below 0.25": 1,
        "0.63 to 0.71": 1,
        "1.00 to 1.12": 2,
        "1.41 to 1.59": 1,
        "4 and above": 1,
        "20 to 29": 1,
        "40 to 49": 1,
        "60 to 69": 1,
        "80 to 89": 1,
        "100 to 109": 1,
    }
    words = spaced(html)
    assert "Bucket Samples 10x10 4 30x20 2 none 1" in words
    assert "00000.tar/2 30 x 20 → 30x20" in words
    assert "Of 7 samples in 1 evenly spaced shards; 1 of them without a readable picture" in words
    assert "2 without a caption" in words
    assert "Bucket Samples" not in spaced(preview.page(manifest, 7))


def test_few_shards_of_many_are_read(
    samples: Samples, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = dataset([samples(1, first=n) for n in range(40)])
    read: list[str] = []
    open_lines = survey.open_lines

    def counted(manifest: Manifest, shard: Shard) -> Lines:
        read.append(storage.name(shard.url))
        return open_lines(manifest, shard)

    monkeypatch.setattr(survey, "open_lines", counted)
    assert survey.survey(manifest).samples == 32
    assert read[:3] + read[-1:] == ["00000.tar", "00001.tar", "00002.tar", "00038.tar"]


def test_the_page_is_well_formed(samples: Samples, dataset: Dataset) -> None:
    class Strict(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    parser = Strict()
    html = preview.page(dataset([samples(3)]), 3, Buckets(sizes=((8, 8),)))
    parser.feed(html)
    assert parser.open == []
    assert html.startswith("<!doctype html>")


def test_the_command_knows_buckets(samples: Samples, dataset: Dataset, tmp_path: Path) -> None:
    manifest, out = dataset([samples(3)]), tmp_path / "page.html"
    words = ["preview", manifest.url, "--out", str(out), "--buckets"]
    assert CliRunner().invoke(app, [*words, "16x8,8x8"]).exit_code == 0
    assert "Bucket Samples 8x8 3" in spaced(out.read_text())
    assert CliRunner().invoke(app, [*words, "64x64"]).exit_code == 0
    assert "Bucket Samples none 3" in spaced(out.read_text())
    for wrong in ("8", "8x", "8x8;9x9", "0x8", "8x8,"):
        done = CliRunner().invoke(app, [*words, wrong])
        assert isinstance(done.exception, RecipeError), wrong
