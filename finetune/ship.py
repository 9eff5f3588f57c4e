"""`export`: a finished run into a folder of some target, and the proof that it is the same."""

from pathlib import Path
from typing import Any

from . import export
from .score import Finished
from .target import find_target, new_folder


def ship(found: Finished, to: str, out: Path, *, rows: int = 64) -> dict[str, Any]:
    """Writes the export and proves it on `rows` test samples; returns the proof.

    Raises:
        RecipeError: no such target.
        ExportError: the target does not take such a model, the folder is in use, or the export
            could not be proven.
    """
    target = find_target(to, export)
    target.require(found.run)
    facts = {
        "run": found.place.name,
        "steps": found.checkpoint.step,
        "weights": found.weights,
        "test data": found.run.data.test,
        "training data digest": found.place.json("run.json").get("data"),
        "recipe digest": found.checkpoint.recipe,
    }
    new_folder(out)
    target.write(out, found.run, found.task, found.text, facts)
    probe = next(found.batches(limit=rows, rows=rows))
    return target.prove(out, found.run, found.task, found.text, probe)
