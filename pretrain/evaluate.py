"""Scores of a task over a whole dataset, every sample once."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from ..data.batch import Batch
from .task import Task


def shuffled(batch: Batch) -> Batch:
    """The batch with each row's image and arrays exchanged for its neighbour's: the control."""
    arrays = {name: array.roll(1, 0) for name, array in batch.arrays.items()}
    return replace(batch, image_BCHW=batch.image_BCHW.roll(1, 0), arrays=arrays)


@torch.no_grad()
def evaluate(
    task: Task,
    batches: Iterable[Batch],
    *,
    change: Callable[[Batch], Batch] = lambda batch: batch,
    told: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """Loss and accuracy of each objective, the mean over all rows with a target.

    Args:
        task: put into evaluation mode and back.
        batches: every sample once.
        change: what is done to each batch before; `shuffled` for the wrong images.
        told: told of the rows of each batch, for a progress bar.
    """
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    training = task.training
    task.eval()
    for batch in batches:
        for name, (total, count) in task(change(batch)).sums.items():
            totals[name][0] += float(total)
            totals[name][1] += float(count)
        told(batch.rows)
    task.train(training)
    return {name: total / count for name, (total, count) in totals.items() if count}
