"""A finished run against its test data: every sample once, with the blind controls beside it."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from ..data import tokens
from ..data.batch import Batch
from ..data.index import Manifest, open_manifest
from ..data.loader import Recipe, once
from ..data.tokens import Text
from ..data.transforms import Pixels
from ..errors import DataError, RunError
from ..pretrain.checkpoint import Checkpoint, open_checkpoint
from ..pretrain.evaluate import evaluate, grouped, shuffled
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.task import Task
from .heads import VisualQuestion
from .parts import KINDS
from .start import Weights, kept, trained_task

_MOST_VALUES = 50


@dataclass(frozen=True)
class Finished:
    """A run with the weights of its newest checkpoint, and where its test data is."""

    place: RunDir
    run: Run
    text: Text
    checkpoint: Checkpoint
    weights: Weights
    task: Task
    test_url: str | None
    """None where none is named, which matters to those who read it."""

    @functools.cached_property
    def test(self) -> Manifest:
        """Its test data.

        Raises:
            RunError: none is named.
        """
        if not self.test_url:
            raise _unnamed(self.place)
        return open_manifest(self.test_url)

    @property
    def recipe(self) -> Recipe:
        """How a test sample becomes a row; hints are drawn of it, since caches are of others."""
        return replace(still(self.run), hints={})

    def batches(self, limit: int | None = None, rows: int = 256) -> Iterator[Batch]:
        """Every test sample once, or the first `limit`, without those that were left out."""
        for batch in once(self.test, self.text, self.recipe, limit=limit, batch=rows):
            if (there := batch.present()).rows:
                yield there


def still(run: Run) -> Recipe:
    """How a sample becomes a row of a test: as in training, but cut in the middle, never flipped.

    Two rows of one picture are then the same.
    """
    pixels = run.data.pixels
    return replace(run.rows, pixels=Pixels(resize=pixels.resize, exact=pixels.exact))


def finished(
    place: RunDir,
    *,
    data: str | None = None,
    weights: Weights | None = None,
    step: int | None = None,
) -> Finished:
    """Opens a run with its test data, which `data` stands in for.

    `weights` are the moving average or the last ones; the average where there is one. `step` is
    that of one of its complete checkpoints; the newest by default.

    Raises:
        RunError: no test data is named anywhere.
        CheckpointError: nothing was kept yet, or no average.
    """
    if not (data or place.recipe(KINDS).data.test):
        raise _unnamed(place)
    found = unread(place, data=data, weights=weights, step=step)
    _ = found.test  # opened now, so that what is wrong with it is said now
    return found


def unread(
    place: RunDir,
    *,
    data: str | None = None,
    weights: Weights | None = None,
    step: int | None = None,
) -> Finished:
    """As `finished`, for an export: its test data is opened by those that ask for it.

    Raises:
        CheckpointError: nothing was kept yet, or no average.
    """
    run, text, checkpoint, task = opened(place, weights, step)
    which = kept(checkpoint, weights)
    return Finished(place, run, text, checkpoint, which, task, data or run.data.test)


def _unnamed(place: RunDir) -> RunError:
    return RunError(f"{place.url} names no test data. Say --data s3://bucket/folder.")


def opened(
    place: RunDir, weights: Weights | None = None, step: int | None = None
) -> tuple[Run, Text, Checkpoint, Task]:
    """A run with the weights of its newest checkpoint, for inputs that are no test data.

    Raises:
        CheckpointError: nothing was kept yet, or no average.
    """
    run = place.recipe(KINDS)
    text = tokens.load(place.at("tokenizer.json"), run.model.tokens)
    checkpoint = open_checkpoint(place.url, step)
    return run, text, checkpoint, trained_task(run, text, checkpoint, weights)


def score(
    found: Finished,
    *,
    limit: int | None = None,
    control: bool = True,
    by: str | None = None,
    told: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """Loss and accuracy over the test data, with right and with shuffled images.

    `shuffled.…` rows use another picture: what they lose is what the image gave. Without
    `control` they are left out. `by` names a field of the records: rows `field=value.…` are of the
    samples with that value, such as the questions of one type.
    """
    parts = grouped(by) if by else None
    right = evaluate(found.task, found.batches(limit), parts=parts, told=told)
    if by:
        _require_kinds(by, right)
    if not control:
        return right
    wrong = evaluate(found.task, found.batches(limit), change=shuffled, told=told)
    return {**right, **{f"shuffled.{name}": value for name, value in wrong.items()}}


def _require_kinds(field: str, scores: Iterable[str]) -> None:
    values = {name.partition(".")[0] for name in scores if name.startswith(f"{field}=")}
    if len(values) > _MOST_VALUES:
        raise DataError(
            f"--by {field}: {len(values)} values are more than {_MOST_VALUES}. Name a field that "
            "sorts the samples into kinds."
        )


def majority(found: Finished, field: str = "answer") -> float:
    """Accuracy of always giving the most frequent answer of the test data."""
    counts = Counter(str(fields.get(field)) for b in found.batches() for fields in b.fields)
    return counts.most_common(1)[0][1] / counts.total()


@torch.no_grad()
def predictions(found: Finished, batch: Batch) -> list[str]:
    """The model's answer to each row of a batch.

    Raises:
        RunError: the run has no VQA head.
    """
    heads = [o for o in found.run.objectives if isinstance(o, VisualQuestion)]
    if not heads:
        raise RunError(f"{found.place.url} has no vqa head; it answers nothing.")
    seen, _ = found.task.scores(batch)
    logits_BA = heads[0].logits(found.task.heads[heads[0].kind], seen)
    return [heads[0].answers[index] for index in logits_BA.argmax(1).tolist()]
