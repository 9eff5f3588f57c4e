"""The data of the reproduction: easy-VQA by attribute, packed once.

`train` is the denoiser's, `judge` the classifier's (other images than the denoiser saw), `test` for
prompts and real images; every sample has its text, "a teal triangle", and both attributes as JSON.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from diptych.data import easyvqa, index, storage, tokens
from diptych.data.pack import Sample, pack, scattered
from diptych.data.precompute import precompute
from diptych.data.records import scan
from diptych.pretrain.encoders import Taef2

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
ASKED = {"what color is it?": "color", "what shape is it?": "shape"}
"""What the classifier is asked, and the field of the record that is right."""


class Drawn(NamedTuple):
    """An image with its caption and attributes."""

    name: str
    blob: bytes
    record: dict[str, Any]

    @property
    def caption(self) -> str:
        """What it shows."""
        return f"a {self.record['color']} {self.record['shape']}"


def prepare(home: Path, taef2: str) -> None:
    """Packs the three parts, the tokenizer, the latents and the questions, unless they are there.

    Args:
        home: of the data.
        taef2: folder of the first stage's weights.
    """
    train = _easy("train")
    _write(
        home,
        {
            "train": [d for n, d in enumerate(train) if n % 3],
            "judge": [d for n, d in enumerate(train) if not n % 3],
            "test": _easy("test"),
        },
    )
    encoder = Taef2(weights=f"{taef2}/taef2_encoder.safetensors")
    source = index.open_manifest(str(home / "train"))
    precompute(source, encoder.open(), encoder.spec(sizes=((64, 64),)), str(latents(home)))
    for split in ("judge", "test"):
        _questions(home, split)


def latents(home: Path) -> Path:
    """Where the cache of the training images' latents is."""
    return home / "train-taef2"


def _easy(split: str) -> list[Drawn]:
    """One sample an image; both attributes are known of nine in ten, from the questions."""
    home = easyvqa._home() / split
    rows = [easyvqa.Question(*row) for row in json.loads((home / "questions.json").read_text())]
    known: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for row in rows:
        said = easyvqa.statement(row)
        for word in [] if said.startswith("no ") else said.split():
            if word in COLORS:
                known[row.image]["color"] = word
            if word in SHAPES:
                known[row.image]["shape"] = word
    return [
        Drawn(f"{number:05d}", (home / "images" / f"{number}.png").read_bytes(), record)
        for number, record in sorted(known.items())
        if len(record) == 2
    ]


def _questions(home: Path, split: str) -> None:
    """The classifier's data: each of its images once for each question."""
    out = home / f"{split}-asked"
    if (out / "index" / "manifest.json").exists():
        return
    samples: list[Sample] = []
    for shard in index.open_manifest(str(home / split)).shards:
        with storage.open_read(shard.url) as file:
            for record, members in scan(file, shard=shard.url):
                samples += _asked(record.key, members)
    index.build(pack(scattered(samples), str(out), per_shard=512))


def _asked(key: str, members: dict[str, bytes]) -> list[Sample]:
    fields = json.loads(members["json"])
    records = [{"question": text, "answer": fields[field]} for text, field in ASKED.items()]
    return [
        (f"{key}-{number}", {**members, "json": json.dumps(record).encode()})
        for number, record in enumerate(records)
    ]


def _write(home: Path, splits: dict[str, Iterable[Drawn]]) -> None:
    texts: list[str] = []
    for split, drawn in splits.items():
        samples = [_sample(number, each) for number, each in enumerate(drawn)]
        texts += [sample[1]["txt"].decode() for sample in samples]
        if not (home / split / "index" / "manifest.json").exists():
            index.build(pack(scattered(samples), str(home / split), per_shard=256))
    if not (home / "tokenizer.json").exists():
        storage.write(str(home / "tokenizer.json"), tokens.learn([*texts, *ASKED], 4000).encode())


def _sample(number: int, drawn: Drawn) -> Sample:
    members = {
        "png": drawn.blob,
        "txt": drawn.caption.encode(),
        "json": json.dumps(drawn.record).encode(),
    }
    return f"{number:06d}-{drawn.name}", members
