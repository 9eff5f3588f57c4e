"""Self-critical sequence training: a caption is worth what it adds to the greedy one.

Rennie et al., CVPR 2017: L = -(r(sampled) - r(greedy)) * log p(sampled), with CIDEr-D as r.
B rows, T tokens.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.draws import uniform
from ..errors import DataError, RecipeError
from ..pretrain.objective import Words
from ..pretrain.task import Task
from ..pretrain.writer import WORTH, Writer
from .decode import Ends, greedy, nucleus
from .metrics.cider import CiderD
from .metrics.ptb import tokenize
from .ngram_table import read

weights_at = functools.lru_cache(maxsize=4)(read)
"""The n-gram weights of a table, which are read once."""


def rewards(
    captions: Sequence[str], references: Sequence[Sequence[str]], weights: CiderD
) -> Tensor:
    """CIDEr-D of each caption against its image's references, (B,) float64.

    Args:
        captions: one an image, as text.
        references: texts of each image.
        weights: of the training references (`cider.weights`); a batch's own would make a caption's
            reward depend on its neighbours.
    """
    pairs = zip(captions, references, strict=True)
    found = [
        weights.score(tokenize(one), [tokenize(text) for text in texts]) for one, texts in pairs
    ]
    return torch.tensor(found, dtype=torch.float64)


def advantages(
    sampled: Sequence[str],
    greedy: Sequence[str],
    references: Sequence[Sequence[str]],
    weights: CiderD,
) -> Tensor:
    """How much better each sampled caption is than the greedy one, (B,), -10 to 10."""
    return rewards(sampled, references, weights) - rewards(greedy, references, weights)


def loss(log_p_BT: Tensor, real_BT: Tensor, advantage_B: Tensor) -> Tensor:
    """Loss of each row, (B,): the mean over its tokens, as the usual implementations take.

    Args:
        log_p_BT: log-probability of each sampled token, with gradients.
        real_BT: bool, True up to and with the token that ends the text.
        advantage_B: from `advantages`; a constant.
    """
    worth_B = advantage_B.detach().to(log_p_BT)
    sum_B = log_p_BT.where(real_BT, 0.0).sum(1)
    return -worth_B * sum_B / real_BT.sum(1).clamp(min=1)


@torch.no_grad()
def critical(task: Task, writer: Writer, batch: Batch, weights: CiderD, field: str | None) -> Batch:
    """The batch with a sampled caption of each row's image for a text, and what it is worth.

    What is drawn hangs on the seed, the step and the sample alone (`Batch.draws_B`).

    Args:
        task: as it is at this step; captions are written without dropout.
        writer: its objective that writes.
        batch: rows with their own texts.
        weights: of the training captions.
        field: of the record, with the captions of the image; None for the row's own text.

    Raises:
        DataError: a record has no captions in that field.
    """
    words, length = task.words, task.spec.tokens
    ends = Ends(words.special[2], words.special[3], length)  # [CLS] and [SEP]
    never = torch.tensor([token for token in words.special if token != ends.last])
    draws_BT = uniform(batch.draws_B.cpu(), f"scst.{batch.step}", length)
    with _evaluating(task):
        steps = Steps(writer, task, batch, never)
        best = steps.to_the_end(greedy(steps, batch.rows, ends), length)
        steps = Steps(writer, task, batch, never)
        drawn = nucleus(steps, batch.rows, ends, share=1.0, draws_TB=draws_BT.T)
        drawn = steps.to_the_end(drawn, length)
    references = _references(batch, words, field)
    device = batch.tokens_BL.device
    sampled_B, greedy_B = (
        rewards(_texts(ids, words), references, weights).float().to(device) for ids in (drawn, best)
    )
    gained = {WORTH: sampled_B - greedy_B, "scst.sampled": sampled_B, "scst.greedy": greedy_B}
    tokens_BL, real_BL = _padded(drawn, batch)
    return replace(batch, tokens_BL=tokens_BL, real_BL=real_BL, arrays={**batch.arrays, **gained})


class Steps:
    """What the writer says next, but never a special token; on all ranks as often.

    Under ZeRO-3 a rank whose captions end early would keep others waiting for its parameters.
    """

    def __init__(self, writer: Writer, task: Task, batch: Batch, never: Tensor) -> None:
        self._next, self._never = writer.follow(task, batch), never
        self._first, self._asked = batch.tokens_BL[:1, :1].cpu(), 0

    def __call__(self, row_S: Tensor, known_ST: Tensor) -> Tensor:
        self._asked += 1
        return self._next(row_S, known_ST).index_fill(1, self._never, -torch.inf)

    def to_the_end(self, texts: list[list[int]], length: int) -> list[list[int]]:
        """The same texts, once the model was asked `length` - 1 times."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            while self._asked < length - 1:
                self(torch.tensor([0]), self._first)
        return texts


@contextmanager
def _evaluating(task: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own."""
    modes = [(module, module.training) for module in task.modules()]
    task.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _references(batch: Batch, words: Words, field: str | None) -> list[list[str]]:
    """The captions of each row's image; none of a row that was left out."""
    if field is None:
        texts = batch.texts or _texts([ids.tolist() for ids in batch.tokens_BL], words)
        return [[text] for text in texts]
    holes = [False] * batch.rows if batch.hole_B is None else batch.hole_B.tolist()
    found = list[list[str]]()
    for key, fields, hole in zip(batch.keys, batch.fields, holes, strict=True):
        given = [""] if hole else fields.get(field)
        given = [given] if isinstance(given, str) else given
        if not given or not isinstance(given, list | tuple):
            raise DataError(
                f"{key}: objective 'scst' finds no captions in the field {field!r} of its record. "
                "Name the field that has them, or leave `references` out."
            )
        found.append([str(text) for text in given])
    return found


def _texts(texts: Sequence[Sequence[int]], words: Words) -> list[str]:
    if words.decode is None:
        raise RecipeError("objective 'scst' needs the tokenizer: `Words.decode` is None.")
    return [words.decode(ids) for ids in texts]


def _padded(texts: Sequence[Sequence[int]], batch: Batch) -> tuple[Tensor, Tensor]:
    """(ids, real) of texts, (B, T), as long as the longest."""
    length = max(map(len, texts))
    real = [[place < len(ids) for place in range(length)] for ids in texts]
    ids = [[*ids, *[0] * (length - len(ids))] for ids in texts]
    tokens_BL = torch.tensor(ids, device=batch.tokens_BL.device)
    return tokens_BL, torch.tensor(real, device=batch.tokens_BL.device)
