"""Sets that differ in nothing but the number of their shards: 20, 200 and 2,000."""

import random
from collections.abc import Iterator

from diptych.data import index, storage, tokens
from diptych.data.pack import Sample, pack

from . import home, pictures, stock

PER_SHARD = 20
SETS = ("g20", "g200", "g2000")
_DIFFERENT = 200


def make(name: str, server: dict[str, str]) -> None:
    """Puts a set into the bucket if it is not there: the same 200 small pictures over and over."""
    url = home.remote(name)
    if stock.indexed(url):
        return
    storage.delete(url)
    samples = list(_samples(pictures.KINDS[name]))
    index.build(pack(samples, url, per_shard=PER_SHARD), threads=8)
    captions = [members["txt"].decode() for _, members in samples[:_DIFFERENT]]
    storage.write(storage.join(url, "tokenizer.json"), tokens.learn(captions).encode())


def _samples(kind: pictures.Kind) -> Iterator[Sample]:
    draws = [random.Random(f"growth/{number}") for number in range(_DIFFERENT)]
    found = [pictures.sample(kind, draw) for draw in draws]
    for number in range(kind.samples):
        yield f"{number:08d}", found[number % _DIFFERENT]
