"""One step's batch again, exactly as it was trained on: for a look at a spike of the loss."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torchvision.utils import save_image

from ..data import storage, tokens
from ..data.holes import Holes
from ..data.loader import Loader
from ..errors import RunError
from ..finetune.parts import KINDS
from ..pretrain.rundir import RunDir
from . import journal, ledger
from .worker import open_plan


def replay(place: RunDir, step: int, out: Path) -> dict[str, Any]:
    """Writes the global batch of a step into a folder; returns what to tell of it.

    `batch.safetensors` holds the tensors that `Task.forward` takes, `rows.json` each row's rank,
    shard, key and record, `images.png` the pictures in the order of the rows.

    Args:
        place: the run.
        step: counts from 0.
        out: a folder, made if need be.

    Raises:
        RunError: the run has no such step.
        DataError: the data changed, or the ranks recorded other samples.
    """
    run = place.recipe(KINDS)
    if not 0 <= step < run.steps:
        raise RunError(f"{place.url} has steps 0 to {run.steps - 1}; --step {step} is none.")
    plan = open_plan(run, place.json("run.json").get("data"))
    lines = list(ledger.lines(place, plan, step, step + 1))
    recorded = ledger.verify(place, lines)
    text = tokens.load(place.at("tokenizer.json"), run.model.tokens)
    holes = Holes(plan, run.data.faults, journal.holes(place))
    loader = Loader(plan, text, run.rows, start=step, stop=step + 1, holes=holes)
    _, batch = next(iter(loader))
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in vars(batch).items() if hasattr(value, "shape")}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, out / "batch.safetensors")
    rows = [
        {**line._asdict(), "fields": dict(fields)}
        for line, fields in zip(lines, batch.fields, strict=True)
    ]
    storage.write(str(out / "rows.json"), json.dumps(rows, indent=1).encode())
    save_image(batch.image_BCHW / 255, out / "images.png", nrow=max(1, int(batch.rows**0.5)))
    ranks = len({line.rank for line in lines})
    left_out = int(batch.hole_B.sum()) if batch.hole_B is not None else 0
    return {
        "step": step,
        "bucket": plan.buckets.name(plan.bucket(step)),
        "rows": batch.rows,
        "left out": left_out,
        "slices as the ranks recorded them": f"{recorded} of {ranks}",
        "folder": str(out.absolute()),
    }
