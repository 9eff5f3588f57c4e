"""A dataset from a folder of pictures: packed, indexed, and with a tokenizer of its own texts."""

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

    `out/tokenizer.json` is learned from the samples' .txt and .json members.

    Raises:
        DataError: nothing to pack, or tars are there already.
    """
    samples = scattered(easyvqa.samples(split)) if source == "easy-vqa" else folder(Path(source))
    texts: list[str] = []

    def listen() -> Iterator[Sample]:
        for key, members in samples:
            texts.extend(members[e].decode() for e in ("txt", "json") if e in members)
            told(1)
            yield key, members

    urls = pack(listen(), out, per_shard=per_shard)
    if texts:
        place = storage.join(storage.absolute(out), "tokenizer.json")
        storage.write(place, tokens.learn(texts, size).encode())
    return index.build(urls)
