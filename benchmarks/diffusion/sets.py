"""The data of the reproduction, packed once: easy-VQA by attribute, emoji by name, photos by class.

Each set has `train` for the denoiser, `judge` for the classifier (other images than the denoiser
saw) and `test` for the real-image control, every sample with `txt` and the attributes in its JSON.
"""

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diptych.data import easyvqa, index, storage, tokens
from diptych.data.pack import Sample, pack, scattered
from diptych.data.precompute import precompute
from diptych.data.records import scan
from diptych.pretrain.encoder import Encoder

SHARED = Path("/work/shared/data")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


class Drawn(NamedTuple):
    """An image with its caption and attributes."""

    name: str
    blob: bytes
    extension: str
    caption: str
    record: dict[str, Any]


def easy(home: Path) -> Path:
    """easy-VQA: one sample an image, "a teal triangle"; both attributes are known of nine in ten.

    Every third training image is the classifier's, the others the denoiser's.
    """
    return _write(
        home / "easy",
        {
            "train": [d for n, d in enumerate(_easy("train")) if n % 3],
            "judge": [d for n, d in enumerate(_easy("train")) if not n % 3],
            "test": _easy("test"),
        },
    )


def photos(home: Path) -> Path:
    """tiny-imagenet-20: 20 classes at 64 px, the caption is the class's first name."""
    train, test = _photos("train"), _photos("val")
    return _write(
        home / "photos",
        {
            "train": [d for n, d in enumerate(train) if n % 5],
            "judge": [d for n, d in enumerate(train) if not n % 5],
            "test": test,
        },
    )


def emoji(home: Path, package: Path) -> Path:
    """Google's emoji (npm emoji-datasource-google@16.0.0, unpacked): the caption is the name."""
    rows = json.loads((package / "emoji.json").read_text())
    found = [
        Drawn(row["unified"], _white(package / "img/google/64" / row["image"]), "png",
              row["name"].lower(), {"category": row["category"]})
        for row in rows
        if row.get("has_img_google") and row.get("name")
    ]  # fmt: skip
    return _write(
        home / "emoji",
        {
            "train": [d for n, d in enumerate(found) if n % 10],
            "test": [d for n, d in enumerate(found) if not n % 10],
        },
    )


def _easy(split: str) -> list[Drawn]:
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
        Drawn(
            f"{number:05d}",
            (home / "images" / f"{number}.png").read_bytes(),
            "png",
            f"a {record['color']} {record['shape']}",
            record,
        )
        for number, record in sorted(known.items())
        if len(record) == 2
    ]


def _photos(split: str) -> list[Drawn]:
    with tarfile.open(SHARED / "tiny-imagenet-20.tar") as archive:
        files = {info.name: file for info in archive if (file := archive.extractfile(info))}
        words = [line.split("\t") for line in files["./words.txt"].read().decode().splitlines()]
        names = {key: said.split(",")[0].lower() for key, said in words}
        lines = files["./val/val_annotations.txt"].read().decode().splitlines()
        classes = {line.split("\t")[0]: line.split("\t")[1] for line in lines}
        return [
            _photo(name, file.read(), names[classes.get(Path(name).name, name.split("/")[2])])
            for name, file in sorted(files.items())
            if name.startswith(f"./{split}/") and name.endswith(".JPEG")
        ]


def _photo(name: str, blob: bytes, label: str) -> Drawn:
    return Drawn(Path(name).stem, blob, "jpg", label, {"label": label})


def _white(path: Path) -> bytes:
    """A picture with its transparency on white."""
    picture = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    out = io.BytesIO()
    Image.alpha_composite(ground, picture).convert("RGB").save(out, "PNG")
    return out.getvalue()


def latents(home: Path, split: str, encoder: Encoder) -> Path:
    """A cache of the split's latents, made once."""
    out = home / f"{split}-{encoder.kind}"
    source = index.open_manifest(str(home / split))
    precompute(source, encoder.open(), encoder.spec(sizes=((64, 64),)), str(out))
    return out


def questions(home: Path, asked: dict[str, str]) -> Path:
    """The classifier's data: each of its images once for each question, {question: field}."""
    for split in ("judge", "test"):
        out = home / f"{split}-asked"
        if (out / "index" / "manifest.json").exists():
            continue
        samples: list[Sample] = []
        for shard in index.open_manifest(str(home / split)).shards:
            with storage.open_read(shard.url) as file:
                for record, members in scan(file, shard=shard.url):
                    samples += _asked(record.key, members, asked)
        index.build(pack(scattered(samples), str(out), per_shard=512))
    return home


def _asked(key: str, members: dict[str, bytes], asked: dict[str, str]) -> list[Sample]:
    fields = json.loads(members["json"])
    records = [{"question": text, "answer": fields[field]} for text, field in asked.items()]
    return [
        (f"{key}-{number}", {**members, "json": json.dumps(record).encode()})
        for number, record in enumerate(records)
    ]


def _write(home: Path, splits: dict[str, Iterable[Drawn]]) -> Path:
    texts: list[str] = []
    for split, drawn in splits.items():
        samples = [_sample(number, each) for number, each in enumerate(drawn)]
        texts += [sample[1]["txt"].decode() for sample in samples]
        if not (home / split / "index" / "manifest.json").exists():
            index.build(pack(scattered(samples), str(home / split), per_shard=256))
    if not (home / "tokenizer.json").exists():
        words = [*texts, "what color is it?", "what shape is it?", "what is it?"]
        storage.write(str(home / "tokenizer.json"), tokens.learn(words, 4000).encode())
    return home


def _sample(number: int, drawn: Drawn) -> Sample:
    members = {
        drawn.extension: drawn.blob,
        "txt": drawn.caption.encode(),
        "json": json.dumps(drawn.record).encode(),
    }
    return f"{number:06d}-{drawn.name}".replace(".", "_"), members
