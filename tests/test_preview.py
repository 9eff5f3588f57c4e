import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diptych.data import preview, storage
from diptych.data.index import Manifest
from diptych.data.pack import Sample
from diptych.errors import StorageError

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
