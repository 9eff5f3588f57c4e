"""Captions: a task with an objective that writes as a model of the next token.

S sequences, T tokens.
"""

from collections.abc import Callable

import torch

from ..data.batch import Batch
from ..data.tokens import Text
from ..errors import RunError
from ..pretrain.task import Task
from ..pretrain.writer import Writer
from .decode import Ends, NextLogits, beam

Decoder = Callable[[NextLogits, int, Ends], list[list[int]]]
"""`decode.greedy`, `decode.beam` or `decode.nucleus`, with their settings bound."""


def next_logits(task: Task, batch: Batch) -> NextLogits:
    """What comes after a text that goes with each row's image; the row's own text is not read.

    Raises:
        RunError: the task has no objective that writes.
    """
    for objective in task.objectives:
        if isinstance(objective, Writer):
            return objective.follow(task, batch)
    raise RunError(
        f"A run with {sorted(task.heads)} writes no captions. Train it with `kind: prefix`, "
        "`show_tell` or `attend_tell`."
    )


def captions(task: Task, text: Text, batch: Batch, decoder: Decoder = beam) -> list[str]:
    """A caption of each row's image; no token but words and the end is ever written.

    Raises:
        RunError: the task has no objective that writes.
    """
    first, last = text.special[2:4]  # [CLS] and [SEP]
    never = torch.tensor([token for token in text.special if token != last])
    training = task.training
    task.eval()
    try:
        model = next_logits(task, batch)
        found = decoder(
            lambda row_S, known_ST: model(row_S, known_ST).index_fill(1, never, -torch.inf),
            batch.rows,
            Ends(first, last, text.length),
        )
    finally:
        task.train(training)
    return [text.decode(ids) for ids in found]
