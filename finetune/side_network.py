"""What exports of ControlNets and T2I-Adapters share: what they are asked in a proof, their card.

B rows, C channels, H x W pixels, L tokens, D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import to_yaml
from ..data.batch import Batch
from ..pretrain.control import Port
from ..pretrain.objective import Asked
from ..pretrain.run import Run
from ..pretrain.task import Task
from .clean_process import keep_probe

_ROWS = 8


@torch.no_grad()
def look(task: Task, batch: Batch) -> tuple[Asked, Tensor]:
    """What the network is asked of real rows, noised half-way, and its hint in [0, 1].

    The base says what it asks: with its classes and places, where it is told any.
    """
    port = task.control
    assert isinstance(port, Port)
    batch = batch.take(0, min(batch.rows, _ROWS))
    view = task.look(batch)
    for objective in task.objectives:
        view = objective.hide(view, task.words)
    hint = port.hint(view).float() / 255
    if hint.shape[1] != port.record.channels:
        hint = hint.expand(-1, port.record.channels, -1, -1)
    asked: list[Asked] = []

    def keep(one: Asked) -> Mapping[str, Any]:
        asked.append(one)
        return {}

    task.model(replace(view, steer=keep))
    return asked[0], hint


def keep_looks(out: Path, asked: Asked, hint_BCHW: Tensor, outputs: Mapping[str, Tensor]) -> None:
    """Writes inputs and outputs for the clean process."""
    inputs = {"x": asked.x_BChw, "time": asked.time_B, "context": asked.context_BLD}
    inputs |= {"hint": hint_BCHW, **(asked.added or {})}
    inputs |= {} if asked.classes_B is None else {"classes": asked.classes_B}
    keep_probe(
        out,
        {
            **{f"in.{name}": value for name, value in inputs.items()},
            **{f"out.{name}": value for name, value in outputs.items()},
        },
    )


def card(run: Run, facts: Mapping[str, Any], kind: str, tag: str) -> str:
    """README.md: what it is, what it was trained beside and on, how it is opened."""
    assert run.control is not None
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    return f"""---
library_name: diffusers
tags: [{tag}]
---
# {run.name}

A `{kind}` trained by Diptych beside `{run.start_from}`, for {run.steps} steps of {run.batch}. Its
hint is `{run.control.hint.kind}`, {run.control.channels} channels in [0, 1].

| | |
|---|---|
{rows}
```python
from diffusers import {kind}
net = {kind}.from_pretrained("{run.name}")
```
`proof.json` says how a clean process got the trained network's outputs from this folder.

<details><summary>Recipe</summary>

```yaml
{to_yaml(run)}```
</details>
"""
