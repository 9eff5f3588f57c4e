"""`plan`: what a run would be, from its recipe, its shape and the data's manifest alone."""

import math
from typing import Any

from ..data import tokens
from ..errors import CheckpointError, DiptychError, RecipeError, StorageError
from ..finetune.start import require_start
from ..pretrain.run import Run
from ..pretrain.settle import settled
from . import costs, estimate
from .costs import Rates
from .shapes import Shape, deepspeed_config
from .worker import open_plan

GB = 1e9


def plan(
    run: Run, shape: Shape, *, rates: Rates | None = None, memory_gb: float | None = None
) -> tuple[dict[str, Any], DiptychError | None]:
    """(facts about a run, each under its name; why it cannot be, if it cannot).

    Args:
        run: the recipe.
        shape: the machines.
        rates: what is known of speeds and prices.
        memory_gb: of a worker's GPU, or of a worker without one.

    Raises:
        DiptychError: what starting it would raise.
    """
    rates = rates or Rates()
    shape.sizes(run)
    run = settled(run)
    chart = open_plan(run)
    text = tokens.load(run.data.tokenizer, run.model.tokens).grown(run.new_words)
    task = estimate.bare(run, text)
    needed = estimate.need(run, shape, chart, text)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    checkpoint = trained * (16 if run.ema else 12)
    facts: dict[str, Any] = {
        "model": run.model.kind,
        "objectives": ", ".join(objective.kind for objective in run.objectives),
        "parameters": sum(p.numel() for p in task.parameters()),
        **({"trained parameters": trained} if run.adapters else {}),
        **{f"frozen: {name}": count for name, count in estimate.frozen(task).items()},
        **{f"frozen: {name}, whole on every worker": n for name, n in needed.beside.items()},
        "data digest": chart.data,
        "plan digest": chart.digest,
        **_data(chart),
        **_steps(run, shape, chart),
        **_memory(needed, run, shape, memory_gb),
        "checkpoints": math.ceil(run.steps / run.checkpoint_steps),  # the last step has one too
        "bytes of a checkpoint": checkpoint,
        **costs.facts(chart, run, shape, rates, checkpoint),
        "deepspeed": deepspeed_config(run, shape),
    }
    try:
        if run.start_from:
            require_start(run.start_from)
        if memory_gb is not None:
            estimate.require_fit(needed, run, shape, memory_gb * GB)
        costs.require_pace(run, shape, rates, checkpoint)
    except (RecipeError, CheckpointError, StorageError) as err:
        return facts, err
    return facts, None


def _data(chart: Any) -> dict[str, Any]:
    return {
        "samples": chart.samples,
        "shards": sum(len(source.manifest.shards) for source in chart.sources),
        "bytes": sum(source.manifest.bytes for source in chart.sources),
        **{
            f"rows of {source.name}": f"{slots / chart.mix.slots.sum():.2%}"
            for source, slots in zip(chart.sources, chart.mix.slots, strict=True)
            if source.name
        },
        **{
            f"bucket {row['bucket']}": f"{row['samples']:,} samples, {row['cropped']:.1%} cropped"
            for row in chart.table()
        },
        "blocks of a shuffle window": chart.orders[0].window_blocks,
    }


def _steps(run: Run, shape: Shape, chart: Any) -> dict[str, Any]:
    return {
        "batch": run.batch,
        "workers": shape.workers,
        "micro-batch": shape.micro_rows(run),
        "accumulation": deepspeed_config(run, shape)["gradient_accumulation_steps"],
        "steps": run.steps,
        "steps per epoch": round(chart.steps_per_epoch, 2),
        "samples per epoch": round(chart.steps_per_epoch * run.batch),
        "epochs": round(run.steps / chart.steps_per_epoch, 2),
    }


def _memory(
    needed: estimate.Need, run: Run, shape: Shape, memory_gb: float | None
) -> dict[str, Any]:
    micro = shape.micro_rows(run)
    facts: dict[str, Any] = {
        "bytes of memory per worker": needed.total(micro),
        **{f"  of which {name}": size for name, size in needed.parts.items()},
        "  of which activations, at most": needed.activations(micro),
        **{f"bytes of host memory per worker, {name}": size for name, size in needed.host.items()},
    }
    if memory_gb is not None:
        found = estimate.rows_that_fit(needed, run, shape, memory_gb * GB)
        facts[f"micro-batch that fits {memory_gb:g} GB"] = found[0] if found else "none"
    return facts
