"""`plan`: what a run would be, from its recipe, its shape and the data's manifest alone."""

from typing import Any

import torch

from ..data import tokens
from ..pretrain.adapter import adapt
from ..pretrain.run import Run
from ..pretrain.task import Task
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
        task = run.task(text.grown(run.new_words))
        adapt(task, run.adapters, text.grown(run.new_words))
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    held, host = memory(task, run, shape)
    return {
        "model": run.model.kind,
        "objectives": ", ".join(objective.kind for objective in run.objectives),
        "parameters": sum(p.numel() for p in task.parameters()),
        **({"trained parameters": trained} if run.adapters else {}),
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
        "bytes of a checkpoint": trained * (16 if run.ema else 12),
        "bytes of memory per worker, without activations": sum(held.values()),
        **{f"  of which {name}": size for name, size in held.items()},
        **{f"bytes of host memory per worker, {name}": size for name, size in host.items()},
        "blocks of a shuffle window": chart.orders[0].window_blocks,
        "data digest": chart.data,
        "plan digest": chart.digest,
        "deepspeed": deepspeed_config(run, shape),
    }


def memory(task: Task, run: Run, shape: Shape) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a worker holds for good: (beside its activations, in the host's memory)."""
    width, stage, workers = _BYTES[shape.precision], shape.zero_stage, shape.workers
    shared = {id(param) for param in task.shared}
    sizes = [(p.numel(), id(p) in shared) for p in task.parameters()]
    whole = sum(n for n, kept in sizes if stage < 3 or kept or n <= shape.whole_below)
    parts = sum(n for n, _ in sizes) - whole
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    share = trained // workers if stage else trained
    # ZeRO 1 and 2 keep a copy of the weights to step on, even where these are fp32 themselves.
    copied = width == 2 or stage in (1, 2) or shape.offload_optimiser != "none"
    weights, state = parts // workers * width, share * (12 if copied else 8)
    held = {
        "weights": whole * width + (0 if shape.offload_weights != "none" else weights),
        "gradients": (share if stage > 1 else trained) * width,
    }
    host = {"weights": weights} if shape.offload_weights == "cpu" else {}
    place = held if shape.offload_optimiser == "none" else host
    place["master weights and moments" if copied else "moments"] = state
    if run.ema:
        place["moving average"] = 4 * trained // workers
    return held, host
