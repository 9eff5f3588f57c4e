"""Captions from the prefix-LM: a task with the `prefix` objective as a model of the next token.

B rows, S sequences, T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.tokens import Text
from ..errors import RunError
from ..pretrain.task import Task
from .decode import Ends, NextLogits, beam

_HEAD = "prefix"

Decoder = Callable[[NextLogits, int, Ends], list[list[int]]]
"""`decode.greedy`, `decode.beam` or `decode.nucleus`, with their settings bound."""


def next_logits(task: Task, batch: Batch) -> NextLogits:
    """What comes after a text that goes with each row's image; the row's own text is not read.

    The image is encoded anew for each token: right for every model, and dear for a large one.

    Raises:
        RunError: the task has no `prefix` objective.
    """
    if _HEAD not in task.heads:
        raise RunError(
            f"A run with {sorted(task.heads)} writes no captions. Train it with `kind: prefix`."
        )

    @torch.no_grad()
    def following(row_S: Tensor, known_ST: Tensor) -> Tensor:
        real_ST = torch.ones_like(known_ST, dtype=torch.bool)
        shown = replace(batch.pick(row_S), tokens_BL=known_ST, real_BL=real_ST)
        view = task.look(shown)
        seen = task.model(replace(view, causal_B=torch.ones_like(view.matched_B)))
        logits_SV: Tensor = task.heads[_HEAD](seen.tokens_BLD[:, -1], seen.word_weights_VD)
        return logits_SV.float().cpu()

    return following


def captions(task: Task, text: Text, batch: Batch, decoder: Decoder = beam) -> list[str]:
    """A caption of each row's image; no token but words and the end is ever written.

    Raises:
        RunError: the task has no `prefix` objective.
    """
    model = next_logits(task, batch)
    first, last = text.special[2:4]  # [CLS] and [SEP]
    never = torch.tensor([token for token in text.special if token != last])
    training = task.training
    task.eval()
    try:
        found = decoder(
            lambda row_S, known_ST: model(row_S, known_ST).index_fill(1, never, -torch.inf),
            batch.rows,
            Ends(first, last, text.length),
        )
    finally:
        task.train(training)
    return [text.decode(ids) for ids in found]
