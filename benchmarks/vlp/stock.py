"""What all arms share: the batches, our task, and a step that is timed part by part.

B rows, L tokens, M masked tokens, V words.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.data.draws import row_key
from diptych.finetune.parts import KINDS
from diptych.pretrain.objective import View, Words
from diptych.pretrain.run import parse_run
from diptych.pretrain.task import Task

VOCABULARY = 8000
TEXTS = Path(__file__).parents[2] / "tests" / "golden" / "captions.json"
"""1,386 questions that people asked of radiographs (VQA-RAD, CC0): real lengths."""
RATE = 1e-4
"""Learning rate; an arm's steps are few."""


@dataclass(frozen=True)
class Arm:
    """A module, and its loss of a batch that was prepared for it."""

    module: nn.Module
    loss: Callable[[int], Tensor]
    """Of the batch of that number."""


def batches(count: int, rows: int, length: int, side: int) -> list[Batch]:
    """Batches of real texts, padded to `length`, and noise for images."""
    asked: list[str] = [t for each in json.loads(TEXTS.read_text())["captions"] for t in each]
    text = tokens.from_text(tokens.learn(asked, VOCABULARY), length)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(asked), generator=draw)[: count * rows].tolist()
    made: list[Batch] = []
    for first in range(0, count * rows, rows):
        picked = order[first : first + rows]
        ids, real = text.encode([asked[number] for number in picked])
        shape = (rows, 3, side, side)
        made.append(
            Batch(
                keys=tuple(map(str, picked)),
                draws_B=torch.tensor([row_key(0, 0, number) for number in picked]),
                image_BCHW=torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),
                tokens_BL=ids,
                real_BL=real,
                fields=tuple({} for _ in picked),
            )
        )
    return made


def task(model: Mapping[str, Any], objectives: list[dict[str, Any]]) -> Task:
    """Our task of such a model, always with the same weights."""
    values = {
        "name": "bench",
        "model": model,
        "objectives": objectives,
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    run = parse_run(values, KINDS, source="bench")
    torch.manual_seed(0)
    words = Words(size=VOCABULARY, mask=4, special=(0, 1, 2, 3, 4), empty=(2, 3))
    made = Task(run.model, run.objectives, words)
    for name, parameter in made.named_parameters():
        if name.endswith("vision.hole"):  # transformers has no mark of hidden regions
            nn.init.zeros_(parameter)
    return made.train()


def hidden(task_: Task, batch: Batch, kinds: tuple[str, ...]) -> View:
    """What objectives show of a batch."""
    view = task_.look(batch)
    for objective in task_.objectives:
        if objective.kind in kinds:
            view = objective.hide(view, task_.words)
    return view


def every_word(logits_BLV: Tensor, targets_BL: Tensor, matched_B: Tensor) -> Tensor:
    """Our MLM loss of logits at every place, as transformers computes them."""
    targets_BL = targets_BL.masked_fill(~matched_B[:, None], -100)
    loss_BL = F.cross_entropy(
        logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none", ignore_index=-100
    ).view_as(targets_BL)
    count_B = (targets_BL >= 0).sum(1)
    return (loss_BL.sum(1) / count_B.clamp(min=1)).sum() / len(count_B)


def timed(arm: Arm, numbers: range) -> dict[str, float]:
    """CPU milliseconds a step of this thread: forward and backward, the optimiser, both."""
    optimiser = torch.optim.AdamW(arm.module.parameters(), lr=RATE)
    learned, stepped = 0.0, 0.0
    for number in numbers:
        started = time.thread_time()
        arm.loss(number).backward()
        middle = time.thread_time()
        optimiser.step()
        optimiser.zero_grad()
        if number:  # the first warms up
            learned, stepped = learned + middle - started, stepped + time.thread_time() - middle
    each = 1e3 / (len(numbers) - 1)
    return {
        "learn_ms": learned * each,
        "optimise_ms": stepped * each,
        "cpu_ms": (learned + stepped) * each,
    }


def compare(wanted: Arm, found: Arm, same: Mapping[str, str] | None = None) -> tuple[float, float]:
    """(relative difference of the losses, largest of the gradients by their tensor's largest).

    `same` names parameters of `found` by those of `wanted`; by their own names without it.
    """
    losses: list[float] = []
    for arm in (wanted, found):
        arm.module.zero_grad()
        loss = arm.loss(0)
        loss.backward()
        losses.append(float(loss.detach()))
    theirs = dict(found.module.named_parameters())
    apart = 0.0
    for name, parameter in wanted.module.named_parameters():
        other = theirs.get((same or {}).get(name, name))
        if other is None or parameter.grad is None or other.grad is None:
            continue
        scale = max(float(parameter.grad.abs().max()), 1e-3)
        apart = max(apart, float((parameter.grad - other.grad).abs().max()) / scale)
    wanted.module.zero_grad()
    found.module.zero_grad()
    return abs(losses[0] - losses[1]) / abs(losses[0]), apart
