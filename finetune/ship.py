"""`export`: a finished run into a folder of some target, and the proof that it is the same."""

from pathlib import Path
from typing import Any, cast

from ..data.batch import Batch
from ..errors import ExportError
from ..pretrain.run import Run
from ..pretrain.task import Task
from . import export
from .merge import merged
from .score import Finished
from .target import Target, find_target, new_folder, targets


def ship(found: Finished, to: str, out: Path, *, rows: int = 64) -> dict[str, Any]:
    """Writes the export and proves it, on `rows` test samples if need be; returns the proof.

    Raises:
        RecipeError: no such target.
        RunError: the proof reads test data, and none is named.
        ExportError: the target does not take such a model, the folder is in use, or the export
            could not be proven.
    """
    target, run, task = _target(found, to)
    target.require(run)
    facts = {
        "run": found.place.name,
        "steps": found.checkpoint.step,
        "weights": found.weights,
        "test data": found.test_url or "none",
        "training data digest": found.place.json("run.json").get("data"),
        "recipe digest": found.checkpoint.recipe,
    }
    reads = getattr(target, "READS", True)
    if reads:
        _ = found.test  # opened before anything is written
    new_folder(out)
    target.write(out, run, task, found.text, facts)
    probe = next(found.batches(limit=rows, rows=rows)) if reads else cast(Batch, None)
    return target.prove(out, run, task, found.text, probe)


def _target(found: Finished, to: str) -> tuple[Target, Run, Task]:
    """The target, and the run and task as it takes them: merged, unless it is for adapters.

    `merged` is the first of the targets for whole models that takes the model, ONNX last: nothing
    trains or samples from it alone.
    """
    if to != "merged":
        target = find_target(to, export, found.run)
        if getattr(target, "ADAPTERS", False):
            return target, found.run, found.task
        return target, *merged(found.run, found.task, found.text)
    run, task = merged(found.run, found.task, found.text)
    said: list[str] = []
    for target in sorted(targets(export), key=lambda target: target.NAME == "onnx"):
        if getattr(target, "ADAPTERS", False):
            continue
        try:
            target.require(run)
            return target, run, task
        except ExportError as err:
            said.append(str(err))
    raise ExportError(f"--to merged: no target holds such a model. {' '.join(said)}")
