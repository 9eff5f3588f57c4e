"""A dataset from pictures: packed, indexed, and with a tokenizer of its own texts."""

import heapq
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from . import easyvqa, index, storage
from .index import Manifest
from .items import Item, Members, Source, validates
from .pack import Packed, Shape, given, pack_items, scattered
from .pictures import Fit, ready
from .records import scan
from .sources import open_source
from .sources.tables import Columns

PARTS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a source becomes a dataset."""

    shape: Shape = field(default_factory=Shape)
    fit: Fit = field(default_factory=Fit)
    columns: Columns = field(default_factory=Columns)
    split: str | None = None
    """Of easy-VQA or a Hugging Face dataset."""
    root: str | None = None
    """Folder that the paths of a table are relative to."""
    validation: float = 0.0
    """Share of the pictures that go to `validation/`, the others to `train/`; 0 makes one part."""
    vocabulary: int = 8000
    """Most ids of the tokenizer; 0 learns none."""
    threads: int = 4


@dataclass
class Made:
    """A dataset that was made."""

    packed: dict[str, Packed] = field(default_factory=dict[str, Packed])
    """By part: `train` and `validation`, or the one part `""`."""
    manifests: dict[str, Manifest] = field(default_factory=dict[str, Manifest])
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Files and columns that were left out on purpose."""


def make(
    source: str,
    out: str,
    how: Making,
    *,
    told: Callable[[int], None] = lambda inputs: None,
) -> Made:
    """Packs a source into tars at `out` and indexes them; an interrupted call goes on.

    Beside the shards lie `skipped.jsonl` and `index/`; `out/tokenizer.json` is learned from the
    texts of the training part.

    Raises:
        DataError: nothing to pack, too many unreadable inputs, a source or options that changed.
    """
    made, texts = Made(), Texts()
    found, change = _source(source, how)
    for part in PARTS if how.validation else ("",):
        folder = storage.join(storage.absolute(out), part) if part else storage.absolute(out)
        packed = pack_items(
            (item for item in found if not part or _part(item, how) == part),
            folder,
            how.shape,
            change=change,
            meaning=_meaning(how, part),
            threads=how.threads,
            told=told,
            heard=texts.add if part != "validation" else lambda key, members: None,
        )
        for url in packed.urls[: packed.kept] if part != "validation" else ():
            texts.read(url)  # of an earlier attempt
        made.packed[part], made.manifests[part] = packed, index.build(packed.urls)
    if texts.some and how.vocabulary:
        from . import tokens  # and torch, which nothing else here needs

        place = storage.join(storage.absolute(out), "tokenizer.json")
        storage.write(place, tokens.learn(texts.some, how.vocabulary).encode())
    if not isinstance(found, list):
        made.notes = {"ignored": dict(found.notes.ignored), "columns": sorted(found.notes.columns)}
    return made


def words(members: Members) -> list[str]:
    """The texts of a sample: its caption, and every string of its JSON record."""
    found = [members["txt"].decode()] if "txt" in members else []
    record = json.loads(members.get("json", b"{}"))
    return [*found, *(value for value in record.values() if isinstance(value, str))]


class Texts:
    """A fair choice of the texts of a dataset: those of the samples with the smallest hashes.

    Which samples these are does not depend on their order or on interruptions.
    """

    def __init__(self, most: int = 200_000) -> None:
        self.most = most
        self._heap: list[tuple[int, str, list[str]]] = []

    def add(self, key: str, members: Members) -> None:
        """Considers a sample."""
        rank = (-zlib.crc32(key.encode()), key)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, (*rank, words(members)))
        elif rank > self._heap[0][:2]:
            heapq.heapreplace(self._heap, (*rank, words(members)))

    def read(self, url: str) -> None:
        """Considers the samples of a packed shard."""
        with storage.open_read(url) as file, storage.explained(url):
            for record, members in scan(file, shard=url):
                self.add(record.key, members)

    @property
    def some(self) -> list[str]:
        """The chosen texts."""
        return [text for _, _, texts in sorted(self._heap) for text in texts]


def _source(source: str, how: Making) -> tuple[Source | list[Item], Callable[[Members], Members]]:
    if source == "easy-vqa":
        samples = scattered(easyvqa.samples(how.split or "train"))
        return [given(sample) for sample in samples], lambda members: members
    found = open_source(source, how.columns, split=how.split, root=how.root)
    return found, lambda members: ready(members, how.fit)


def _part(item: Item, how: Making) -> str:
    return "validation" if validates(item.group, how.validation) else "train"


def _meaning(how: Making, part: str) -> dict[str, Any]:
    """All that decides what a shard holds."""
    share = {"part": part, "validation": how.validation}
    return {**asdict(how.fit), **asdict(how.columns), "split": how.split, **share}
