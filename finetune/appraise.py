"""The scores of a gallery: every network's, every question's, and the held-out loss by timestep."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data import index, storage
from ..data.index import Manifest
from ..errors import RunError
from . import judge
from .exhibit import Hung
from .judge import Network, Question
from .score import Finished, score

SCORES = "scores.json"


@dataclass(frozen=True)
class Panel:
    """Who judges, and beside what."""

    networks: Sequence[Network] = ()
    classifier: Finished | None = None
    questions: Sequence[Question] = ()
    reals: int | None = None
    """Real images of each kind; as many as there are samples by default."""
    losses: int | None = None
    """Held-out samples for the loss by timestep; 0 for none, all by default."""
    train: str | None = None
    """Dataset of real images that were trained on; the recipe's first by default."""


def appraise(
    found: Finished,
    hung: Hung,
    url: str,
    panel: Panel,
    *,
    told: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """All scores of a complete gallery; they are added to `scores.json` beside it.

    Raises:
        RunError: questions without a classifier.
        DiptychError: images that cannot be read, a network that does not take them.
    """
    if panel.questions and panel.classifier is None:
        raise RunError("--ask needs --classifier: a finished run with a VQA head.")
    made = index.open_manifest(url)
    rows: dict[str, Any] = {"samples": made.samples, "gallery": url}
    if panel.losses != 0:
        told("held-out loss")
        rows |= score(found, limit=panel.losses, control=False)
    size = found.run.model.image_size
    count = panel.reals or made.samples
    train = _train(found, panel)
    for network in panel.networks:
        told(f"features of {network.name}")
        rows |= _compared(network, found, made, train, size, count)
    if panel.classifier is not None:
        told(f"questions to {panel.classifier.place.name}")
        rows |= _asked(panel, found, made, count)
    place = storage.join(url, SCORES)
    before = json.loads(storage.read(place)) if storage.exists(place) else {}
    storage.write(place, json.dumps({**before, **rows}, indent=1).encode())
    return rows


def _compared(
    network: Network, found: Finished, made: Manifest, train: Manifest, size: int, count: int
) -> dict[str, Any]:
    made_ND, alike = judge.features(network, judge.pictures(made, found.text, size, made.samples))
    test_ND, real = judge.features(
        network, judge.pictures(found.test, found.text, size, count, shuffle=True)
    )
    train_ND, _ = judge.features(
        network, judge.pictures(train, found.text, size, count, shuffle=True)
    )
    rows = judge.compare(network, made_ND, test_ND, train_ND)
    if alike is not None and real is not None:
        rows[f"similarity.{network.name}"] = float(alike.mean())
        rows[f"real.similarity.{network.name}"] = float(real.mean())
    return rows


def _asked(panel: Panel, found: Finished, made: Manifest, count: int) -> dict[str, float]:
    assert panel.classifier is not None
    size = panel.classifier.run.model.image_size
    words = panel.classifier.text
    drawn = judge.pictures(made, words, size, made.samples)
    real = judge.pictures(found.test, words, size, count, shuffle=True)
    rows = judge.accuracy(panel.classifier, panel.questions, drawn)
    control = judge.accuracy(panel.classifier, panel.questions, real)
    return {**rows, **{f"real.{name}": value for name, value in control.items()}}


def _train(found: Finished, panel: Panel) -> Manifest:
    return index.open_manifest(panel.train or found.run.data.sources[0].url)
