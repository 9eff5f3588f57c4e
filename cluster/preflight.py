"""`plan`: what a run would be, from its recipe, its shape and the data's manifest alone."""

from typing import Any

import torch

from ..data import tokens
from ..pretrain.run import Run
from .shapes import Shape, deepspeed_config
from .worker import open_plan, settled

_BYTES = {"fp32": 4, "bf16": 2}


def plan(run: Run, shape: Shape) -> dict[str, Any]:
    """Facts about a run, each under its name; raises what starting it would raise."""
    micro = shape.micro_rows(run)
    run = settled(run)
    chart = open_plan(run)
    text = tokens.load(run.data.tokenizer, run.model.tokens)
    with torch.device("meta"):
        task = run.task(text)
    parameters = sum(p.numel() for p in task.parameters())
    share = shape.workers if shape.zero_stage else 1
    width = _BYTES[shape.precision]
    moments = parameters * 12 // share if width == 2 else parameters * 8 // share
    memory = {
        "weights": parameters * width,
        "gradients": parameters * width,
        "master weights and moments": moments + (parameters * 4 // share if width == 4 else 0),
    }
    return {
        "model": run.model.kind,
        "objectives": ", ".join(objective.kind for objective in run.objectives),
        "parameters": parameters,
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
        "batch": run.batch,
        "workers": shape.workers,
        "micro-batch": micro,
        "accumulation": deepspeed_config(run, shape)["gradient_accumulation_steps"],
        "steps": run.steps,
        "steps per epoch": round(chart.steps_per_epoch, 2),
        "epochs": round(run.steps / chart.steps_per_epoch, 2),
        "checkpoints": run.steps // run.checkpoint_steps,
        "bytes of a checkpoint": parameters * 12,
        "bytes of memory per worker, without activations": sum(memory.values()),
        **{f"  of which {name}": size for name, size in memory.items()},
        "blocks of a shuffle window": chart.orders[0].window_blocks,
        "data digest": chart.data,
        "plan digest": chart.digest,
        "deepspeed": deepspeed_config(run, shape),
    }
