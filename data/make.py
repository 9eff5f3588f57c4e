"""A dataset from a folder of pictures: packed, indexed, and with a tokenizer of its own texts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from . import easyvqa, index, storage, tokens
from .index import Manifest
from .pack import Sample, folder, pack, scattered


def make(
    source: str,
    out: str,
    *,
    per_shard: int = 1000,
    split: str = "train",
    size: int = 8000,
    told: Callable[[int], None] = lambda samples: None,
) -> Manifest:
    """Packs `source` (a folder, or `easy-vqa`) into tars at `out` and indexes them.

    `out/tokenizer.json` is learned from the samples' texts.

    Raises:
        DataError: nothing to pack, or tars are there already.
    """
    samples = scattered(easyvqa.samples(split)) if source == "easy-vqa" else folder(Path(source))
    texts: list[str] = []

    def listen() -> Iterator[Sample]:
        for key, members in samples:
            texts.extend(words(members))
            told(1)
            yield key, members

    urls = pack(listen(), out, per_shard=per_shard)
    if texts:
        place = storage.join(storage.absolute(out), "tokenizer.json")
        storage.write(place, tokens.learn(texts, size).encode())
    return index.build(urls)


def words(members: dict[str, bytes]) -> list[str]:
    """The texts of a sample: its caption, and every string of its JSON record."""
    found = [members["txt"].decode()] if "txt" in members else []
    record = json.loads(members.get("json", b"{}"))
    return [*found, *(value for value in record.values() if isinstance(value, str))]
