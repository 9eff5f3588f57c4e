"""Scores of a task over a whole dataset, every sample once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

import torch

from ..data.batch import Batch
from ..errors import DataError
from .task import Task


def shuffled(batch: Batch) -> Batch:
    """The batch with each row's image and arrays exchanged for another's: the control.

    That of the row before it, or of the next one before that which shows another picture; a row
    beside which there is none is left out.
    """
    shown = _pictures(batch)
    found = {row: _other(shown, row) for row in range(batch.rows)}
    pairs = [(row, other) for row, other in found.items() if other is not None]
    row_S, other_S = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
    other_S = other_S.to(batch.image_BCHW.device)
    arrays = {name: array[other_S] for name, array in batch.arrays.items()}
    return replace(batch.pick(row_S), image_BCHW=batch.image_BCHW[other_S], arrays=arrays)


def _pictures(batch: Batch) -> list[bytes]:
    """What each row shows, in few bytes."""
    parts = [
        tensor.reshape(batch.rows, -1).contiguous().view(torch.uint8).cpu().numpy()
        for tensor in (batch.image_BCHW, *batch.arrays.values())
    ]
    return [
        blake2b(b"".join(part[row].tobytes() for part in parts)).digest()
        for row in range(batch.rows)
    ]


def _other(shown: Sequence[bytes], row: int) -> int | None:
    """The nearest row before this one, around the end, that shows something else."""
    before = ((row - back) % len(shown) for back in range(1, len(shown)))
    return next((other for other in before if shown[other] != shown[row]), None)


def grouped(field: str) -> Callable[[Batch], Iterator[tuple[str, Batch]]]:
    """Parts for `evaluate`: a batch whole, and its rows by a field of their records."""

    def parts(batch: Batch) -> Iterator[tuple[str, Batch]]:
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, fields in enumerate(batch.fields):
            if field not in fields:
                there = ", ".join(sorted(fields)) or "none"
                raise DataError(f"{batch.keys[row]} has no field {field!r}; it has: {there}.")
            rows[str(fields[field])].append(row)
        yield "", batch
        for value, found in rows.items():
            yield f"{field}={value}.", batch.pick(torch.tensor(found))

    return parts


@torch.no_grad()
def evaluate(
    task: Task,
    batches: Iterable[Batch],
    *,
    change: Callable[[Batch], Batch] = lambda batch: batch,
    parts: Callable[[Batch], Iterable[tuple[str, Batch]]] | None = None,
    told: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """Loss and accuracy of each objective, the mean over all rows with a target.

    Args:
        task: put into evaluation mode and back.
        batches: every sample once; holes count as nothing.
        change: what is done to each batch before; `shuffled` for the wrong images.
        parts: what of each batch is scored apart, and what is put before the names of its scores;
            the whole batch, and nothing, by default.
        told: told of the rows of each batch, for a progress bar.
    """
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    training = task.training
    task.eval()
    for batch in batches:
        if (seen := change(batch.present())).rows:
            for prefix, part in parts(seen) if parts else [("", seen)]:
                for name, (total, count) in task(part).sums.items():
                    totals[prefix + name][0] += float(total)
                    totals[prefix + name][1] += float(count)
        told(batch.rows)
    task.train(training)
    return {name: total / count for name, (total, count) in totals.items() if count}
