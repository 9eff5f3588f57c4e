"""20 classes of Tiny ImageNet as datasets that Diptych trains on, and their latents.

    python scripts/tiny20.py --tar ../shared/data/tiny-imagenet-20.tar --out .diptych/tiny20

writes `train/` and `val/` (photo, `.txt` with the class name, `.cls` with its number, `.json` with
all its names and the object's box), `tokenizer.json`, and `latents/`, a cache of TAEF2 latents of
`train/`. The photos are for private runs: Tiny ImageNet has no licence to show them.
"""

import argparse
import json
import tarfile
from pathlib import Path

from diptych.config import plain
from diptych.data import index, storage, tokens
from diptych.data.pack import Sample, pack, scattered
from diptych.data.precompute import precompute
from diptych.pretrain.encoders import Taef2

PROMPTS = """a photo of a dog cat bird toy fruit food animal insect sks dog, a good photo of the
backpack can candle glasses plushie robot sneaker teapot vase, in the jungle, in the snow, on the
beach, on top of pink fabric, with a city in the background, red blue green purple yellow shiny wet
cube shaped, an edge sketch drawing painting picture with without and or of in at to the"""
"""Words that prompts have and class names lack; the letters make all others."""


def names(text: str) -> dict[str, list[str]]:
    """All names of each class by its WordNet id, the best known first, lower case."""
    found = {}
    for line in text.splitlines():
        wnid, _, listed = line.partition("\t")
        found[wnid] = [name.strip().lower() for name in listed.split(",")]
        if found[wnid][0] == "tabby":
            found[wnid] = ["tabby cat", "tabby"]
    return dict(sorted(found.items()))


def read(path: Path) -> tuple[list[Sample], list[Sample], list[str]]:
    """(samples of train, of val, class names) of the tar."""
    with tarfile.open(path) as tar:
        files = {
            member.name.removeprefix("./"): tar.extractfile(member).read()  # type: ignore[union-attr]
            for member in tar
            if member.isfile()
        }
    known = names(files.pop("words.txt").decode())
    boxes = {}
    labels = {}
    for name, data in files.items():
        if name.endswith(".txt"):
            for line in data.decode().splitlines():
                picture, *rest = line.split()
                if name.startswith("val/"):
                    labels[picture] = rest.pop(0)
                boxes[picture] = [int(value) for value in rest]
    parts: dict[str, list[Sample]] = {"train": [], "val": []}
    for name, data in sorted(files.items()):
        if not name.endswith(".JPEG"):
            continue
        part, picture = name.split("/")[0], name.split("/")[-1]
        wnid = labels.get(picture) or picture.split("_")[0]
        record = {"names": known[wnid], "wnid": wnid, "box": boxes[picture]}
        members = {
            "jpg": data,
            "txt": known[wnid][0].encode(),
            "cls": str(list(known).index(wnid)).encode(),
            "json": json.dumps(record).encode(),
        }
        parts[part].append((picture.removesuffix(".JPEG"), members))
    return parts["train"], parts["val"], [found[0] for found in known.values()]


def main() -> None:
    """Writes it all; an interrupted call goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tar", type=Path, default=Path("../shared/data/tiny-imagenet-20.tar"))
    parser.add_argument("--out", default=".diptych/tiny20")
    parser.add_argument("--taef2", default="../shared/data/taef2", help="folder of its weights")
    given = parser.parse_args()
    out = storage.absolute(given.out)
    train, val, classes = read(given.tar)
    manifests = {}
    for part, samples in (("train", train), ("val", val)):
        manifests[part] = index.build(pack(scattered(samples), f"{out}/{part}", per_shard=1000))
        print(f"{out}/{part}: {manifests[part].samples} photos")
    words = [
        *classes,
        *PROMPTS.split(),
        "abcdefghijklmnopqrstuvwxyz",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    storage.write(f"{out}/tokenizer.json", tokens.learn(words * 4, 800).encode())
    storage.write(f"{out}/classes.json", json.dumps(classes, indent=1).encode())
    encoder = Taef2(weights=f"{given.taef2}/taef2_encoder.safetensors")
    spec = encoder.spec()
    precompute(
        manifests["train"], encoder.open(), spec, f"{out}/latents",
        told=lambda done: print(done.shard, plain(spec)["encoder"], done.samples, flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    main()
