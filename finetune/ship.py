"""`export`: a finished run into a folder of some target, and the proof that it is the same."""

from pathlib import Path
from typing import Any

from ..config import unknown
from ..errors import ExportError
from ..pretrain.objective import Seen
from . import export
from .export.folder import Loaded
from .prove import prove
from .score import Finished

TARGETS = {"diptych": export.folder}
"""Export targets by the name that `--to` takes."""


def ship(found: Finished, to: str, out: Path, *, rows: int = 64) -> dict[str, Any]:
    """Writes the export and proves it on `rows` test samples; returns the proof.

    Raises:
        RecipeError: no such target.
        ExportError: the model is a denoiser, or it could not be written, or not be proven.
    """
    if to not in TARGETS:
        raise unknown(to, list(TARGETS), "--to")
    if found.run.model.gives is not Seen:
        raise ExportError(
            f"{found.place.url} trained a denoiser ({found.run.model.kind}), which {to!r} cannot "
            "hold yet. Its weights are in its checkpoints."
        )
    facts = {
        "run": found.place.name,
        "steps": found.checkpoint.step,
        "weights": found.weights,
        "test data": found.run.data.test,
        "training data digest": found.place.json("run.json").get("data"),
        "recipe digest": found.checkpoint.recipe,
    }
    TARGETS[to].write(out, found.run, found.task, found.text, facts)
    probe = next(found.batches(limit=rows, rows=rows))
    return prove(out, Loaded(found.run, found.text, found.task), probe)
