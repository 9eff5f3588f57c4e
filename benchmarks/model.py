"""A model of any size and batches for it, from memory: what a step costs and nothing else."""

from dataclasses import dataclass

import torch

from diptych.data.batch import Batch
from diptych.finetune.parts import KINDS
from diptych.pretrain.objective import Words
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.task import Task

_WORDS = 400
_PIXELS = 16


@dataclass(frozen=True)
class Size:
    """How large, and how many rows a step has over all ranks."""

    width: int
    depth: int
    heads: int = 4
    tokens: int = 8
    rows: int = 4
    ema: bool = False


def recipe(size: Size, name: str = "bench") -> Run:
    """Masked language modelling beside a small picture; its data is nowhere."""
    model = {"kind": "vlp", "tokens": size.tokens, "width": size.width, "depth": size.depth}
    model |= {"heads": size.heads, "grid": 2, "stem": 4, "image_size": _PIXELS, "dropout": 0.0}
    values = {
        "name": name,
        "model": model,
        "objectives": [{"kind": "mlm"}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
        "optim": {"lr": 1e-4, "decay": "none"},
        "batch": size.rows,
        "steps": 1_000_000,
        "log_steps": 10,
        "checkpoint_steps": 1_000_000,
    }
    values |= {"ema": {"decay": 0.99}} if size.ema else {}
    return parse_run(values, KINDS, source="benchmark")


def task(run: Run) -> Task:
    """The same weights in every process."""
    torch.manual_seed(0)
    words = Words(size=_WORDS, mask=3, special=(0, 1, 2, 3), empty=(1, 2))
    return Task(run.model, run.objectives, words)


def batches(size: Size, count: int, rank: int, world: int) -> list[Batch]:
    """A rank's rows of `count` global batches, which are the same for everybody."""
    draw = torch.Generator().manual_seed(1)
    shape, each = (size.rows, size.tokens), size.rows // world
    found: list[Batch] = []
    for _ in range(count):
        pixels = torch.randint(256, (size.rows, 3, _PIXELS, _PIXELS), generator=draw)
        whole = Batch(
            keys=tuple(f"shard/{row}" for row in range(size.rows)),
            draws_B=torch.randint(1 << 62, (size.rows,), generator=draw),
            image_BCHW=pixels.to(torch.uint8),
            tokens_BL=torch.randint(4, _WORDS, shape, generator=draw),
            real_BL=torch.ones(shape, dtype=torch.bool),
            fields=({},) * size.rows,
        )
        found.append(whole.take(rank * each, (rank + 1) * each))
    return found
