"""Runs one cell: made ready as the verbs do, trained, looked at, told; its row of the tables."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.config import parse
from diptych.data import storage
from diptych.finetune import steering
from diptych.finetune.dreambooth import photos, story
from diptych.finetune.dreambooth.recipe import Wishes
from diptych.finetune.dreambooth.watch import pictures
from diptych.finetune.features import features
from diptych.finetune.metrics import subject
from diptych.finetune.sample import Painter
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.encoder import Opened
from diptych.pretrain.rundir import RunDir

from .cells import SUBJECTS, Cell
from .training import emptied, train

_SAMPLER = {"steps": 15, "guidance_scale": 3.0}
_WORD = "<it>"


@dataclass(frozen=True)
class Means:
    """What all cells share."""

    base: Painter
    encoder: Opened
    home: Path
    subjects: str
    """Tar of the subjects."""
    data: str
    """Folder of the base's own pictures."""
    steps: int
    looks: int
    batch: int
    count: int
    """Pictures of each prompt at each look."""
    settings: tuple[str, ...] = ()
    """Of every recipe, `path=value`."""


def run(cell: Cell, means: Means) -> dict[str, Any]:
    """A row: first and last look, all looks, bytes of what was trained, seconds."""
    began = time.monotonic()
    emptied(means.home / cell.name)
    place = RunDir(storage.absolute(str(means.home / cell.name)))
    found = _subject(cell, means, place) if cell.subject else _control(cell, means, place)
    newest = max((means.home / cell.name / "checkpoints").glob("*/"))
    size = sum(file.stat().st_size for file in newest.rglob("*.safetensors"))
    looks = sorted(place.rows("looks.jsonl"), key=lambda row: row["step"])
    facts = {"name": cell.name, "method": cell.method, "subject": cell.subject, "seed": cell.seed}
    facts |= {"first": looks[0], "last": looks[-1], "looks": looks, "bytes": size}
    return {**facts, **found, "seconds": time.monotonic() - began}


def _subject(cell: Cell, means: Means, place: RunDir) -> dict[str, Any]:
    stranger = SUBJECTS[cell.subject][1]
    how = parse(Sampling, {**_SAMPLER, "seed": cell.seed}, source="sampling")
    made = story.ready(
        means.base,
        means.subjects,
        place,
        _wishes(cell, means),
        means.encoder,
        how=how,
        only=f"{cell.subject}/",
        count=means.count,
        cache=str(means.home / "class-pictures"),
        settings=(*means.settings, *cell.settings.get("set", ())),
    )
    made.watch.before()
    numbers = train(made.run, place, made.watch.after)
    advice, _ = story.tell(made)
    return {"numbers": numbers, "advised": advice.step, "stranger": _strange(made, means, stranger)}


def _wishes(cell: Cell, means: Means) -> Wishes:
    word, _, keys = SUBJECTS[cell.subject]
    values = {"class_word": word, "prompt": "{identifier} {word}", "class_images": 32}
    values |= {"steps": means.steps, "looks": means.looks, "batch": means.batch, "seed": cell.seed}
    values |= cell.settings
    values.pop("set", None)
    if values.pop("real", False):
        values |= {"class_from": means.data, "class_only": keys}
    if values.get("adapter", {}).get("kind") == "tokens":
        values |= {"identifier": _WORD, "adapter": {"kind": "tokens", "words": {_WORD: word}}}
    return parse(Wishes, values, source=cell.name)


def _strange(made: story.Ready, means: Means, stranger: str | None) -> float | None:
    """How like the subject's pictures those of another of its class are."""
    if stranger is None:
        return None
    place = str(means.home / "strangers")
    found = photos.packed(means.subjects, place, "stranger", only=f"{stranger}/")
    theirs_ND = features(means.encoder, pictures(found, means.base))
    mine_MD = features(means.encoder, made.watch.photos_NHWC)
    return subject.fidelity(theirs_ND, mine_MD).similarity


def _control(cell: Cell, means: Means, place: RunDir) -> dict[str, Any]:
    values = {"hint": {"kind": "canny"}, **cell.settings}
    recipe = steering.recipe(
        means.base, place.name, storage.absolute(means.data), values, steps=means.steps,
        batch=means.batch, looks=means.looks, seed=cell.seed, settings=means.settings,
    )  # fmt: skip
    assert recipe.control is not None
    asked = steering.exam(
        means.base, recipe.data.test or means.data, recipe.control.hint, means.count
    )
    how = parse(Sampling, {**_SAMPLER, "seed": cell.seed}, source="sampling")
    watch = steering.ControlWatch(place, means.base, recipe.control.hint, asked, how)
    numbers = train(recipe, place, lambda step: watch.catch_up())
    steering.tell(watch, recipe)
    return {"numbers": numbers}
