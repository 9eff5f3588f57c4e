"""One step's batch again, exactly as it was trained on: for a look at a spike of the loss."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import save_image

from ..data import storage, tokens
from ..data.batch import Batch
from ..data.holes import Budget, Holes
from ..data.loader import Loader
from ..errors import RunError, StorageError
from ..finetune.parts import KINDS
from ..pretrain.rundir import RunDir
from . import journal, ledger
from .worker import open_plan


def replay(place: RunDir, step: int, out: Path) -> dict[str, Any]:
    """Writes the global batch of a step into a folder; returns what to tell of it.

    `batch.safetensors` holds the tensors that `Task.forward` takes (`arrays.NAME` and `hints.NAME`
    among them), `rows.json` each row's rank, shard, key, record and, where it is left out now, why:
    what came into quarantine since was trained on. `images.png` has the pictures in the order of
    the rows, of the shards where the run trains from a cache.

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
    # What is damaged is told of, not refused, so that a run which passed its budget has a replay.
    holes = Holes(plan, Budget(shard=1, source=1), journal.holes(place))
    loader = Loader(
        plan, text, run.rows, start=step, stop=step + 1, holes=holes, joined=run.joined(plan)
    )
    _, batch = next(iter(loader))
    out.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(batch), out / "batch.safetensors")
    rows = [
        {**line._asdict(), "fields": dict(fields), **({"hole": why} if why else {})}
        for line, fields, why in zip(lines, batch.fields, _holes(batch, holes), strict=True)
    ]
    storage.write(str(out / "rows.json"), json.dumps(rows, indent=1).encode())
    pictures = _draw(loader, batch, out / "images.png")
    ranks = len({line.rank for line in lines})
    left_out = int(batch.hole_B.sum()) if batch.hole_B is not None else 0
    return {
        "step": step,
        "bucket": plan.buckets.name(plan.bucket(step)),
        "rows": batch.rows,
        "left out": left_out,
        "slices as the ranks recorded them": f"{recorded} of {ranks}",
        "pictures": pictures,
        "folder": str(out.absolute()),
    }


def _tensors(batch: Batch) -> dict[str, Tensor]:
    found = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    found |= {f"arrays.{name}": value for name, value in batch.arrays.items()}
    found |= {f"hints.{name}": value for name, value in batch.hints.items()}
    return {name: value.contiguous() for name, value in found.items()}


def _holes(batch: Batch, holes: Holes) -> list[str]:
    """Why each row is left out; nothing of those that are not."""
    left_out = [False] * batch.rows if batch.hole_B is None else batch.hole_B.tolist()
    reasons = holes.reasons() if any(left_out) else {}
    return [reasons[key] if hole else "" for key, hole in zip(batch.keys, left_out, strict=True)]


def _draw(loader: Loader, batch: Batch, url: Path) -> str:
    """Writes the pictures of a loader's only batch, read anew where a cache stands for them."""
    told = url.name
    if loader.joined and loader.joined.images:
        recipe = replace(loader.recipe, arrays={}, hints={})
        start, stop, holes = loader.start, loader.stop, loader.holes
        shards = Loader(loader.plan, loader.text, recipe, start=start, stop=stop, holes=holes)
        try:
            _, batch = next(iter(shards))
        except StorageError as err:  # a cache needs no shards: they may be gone
            return f"none: {err}"
        told = f"{told}, of the shards"
    save_image(batch.image_BCHW / 255, url, nrow=max(1, int(batch.rows**0.5)))
    return told
