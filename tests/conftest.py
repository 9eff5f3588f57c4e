"""What several tests need: samples, a small dataset, a tokenizer."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

from diptych.data import index, storage, tokens
from diptych.data.index import Manifest
from diptych.data.pack import Sample, tar
from diptych.data.tokens import Text

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


def _sample(number: int) -> Sample:
    picture = io.BytesIO()
    color = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
    Image.new("RGB", (8, 8), color).save(picture, "PNG")
    record = {"question": f"is it number {number}?", "answer": "yes"}
    members = {
        "png": picture.getvalue(),
        "txt": f"a picture with number {number}".encode(),
        "json": json.dumps(record).encode(),
    }
    return f"{number:06d}", members


@pytest.fixture
def samples() -> Samples:
    """`samples(3, first=7)`: three samples of 8 x 8 pixels, 7 the first one's number."""
    return lambda count, first=0: [_sample(number) for number in range(first, first + count)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """`dataset([shard, shard])`: shards of samples at tmp_path/set, indexed."""

    def make(shards: Sequence[list[Sample]], folder: str = "set") -> Manifest:
        urls = [str(tmp_path / folder / f"{number:05d}.tar") for number in range(len(shards))]
        for url, found in zip(urls, shards, strict=True):
            storage.write(url, tar(found))
        return index.build(urls)

    return make


@pytest.fixture(scope="session")
def text() -> Text:
    """A tokenizer of 12 ids a text that knows the words of `samples`."""
    words = [f"a picture with number {number} is it yes?" for number in range(40)]
    return tokens.from_text(tokens.learn(words, 200), 12)
