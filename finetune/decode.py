"""Texts from a model that tells the next token: greedy, beam search, nucleus sampling.

Each is a pure function of `next_logits`, which knows the image, and of where to begin and end.
B rows, T tokens, V vocabulary, K beams.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NextLogits = Callable[[Tensor, Tensor], Tensor]
"""(row of each sequence (S,), sequences (S, T) int64) -> logits of the token after it (S, V).

Rows are asked for while their texts go on, and K times in beam search."""


@dataclass(frozen=True)
class Ends:
    """Where texts begin and end."""

    first: int
    """Id that stands before the first word, such as [CLS]."""
    last: int
    """Id that ends a text, such as [SEP]."""
    length: int
    """Most tokens of a text, the first and the last among them; at least 2."""


@dataclass
class _Beam:
    """The search for one row's text: sequences that go on, and the best that have ended."""

    live: list[tuple[float, list[int]]]
    ended: list[tuple[float, list[int]]]


def greedy(next_logits: NextLogits, rows: int, ends: Ends) -> list[list[int]]:
    """The likeliest token, again and again; tokens of each row with `first`, and `last` if it came.

    Args:
        next_logits: the model.
        rows: texts to write.
        ends: where they begin and end.
    """
    return _grown(next_logits, rows, ends, lambda logits_SV, row_S: logits_SV.argmax(1))


def nucleus(
    next_logits: NextLogits,
    rows: int,
    ends: Ends,
    *,
    share: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    draws_TB: Tensor | None = None,
) -> list[list[int]]:
    """Tokens drawn from the likeliest ones that together have `share` (Holtzman et al. 2020).

    Args:
        next_logits: the model.
        rows: texts to write.
        ends: where they begin and end.
        share: of the probability, 0 (the likeliest token alone) to 1 (all).
        temperature: above 0; below 1 the likely become likelier.
        generator: the source of chance, on the CPU. A row draws the same number of times whatever
            the others do: once a place.
        draws_TB: numbers from 0 to 1 to draw with instead, float64, one for each place of each row.
    """
    if draws_TB is None:
        draws_TB = torch.rand(ends.length, rows, generator=generator, dtype=torch.float64)
    step = iter(draws_TB)

    def choose(logits_SV: Tensor, row_S: Tensor) -> Tensor:
        chances_SV, token_SV = (logits_SV.double() / temperature).softmax(1).sort(1, True)
        sums_SV = chances_SV.cumsum(1)
        in_SV = sums_SV - chances_SV < share  # the first that reaches the share is in
        in_SV[:, 0] = True
        kept_SV = chances_SV * in_SV
        draw_S1 = next(step)[row_S].to(kept_SV.device)[:, None] * kept_SV.sum(1, keepdim=True)
        place_S1 = (kept_SV.cumsum(1) <= draw_S1).sum(1, keepdim=True)
        last_S1 = in_SV.sum(1, keepdim=True) - 1  # a sum may round to no more than the draw
        return token_SV.gather(1, place_S1.minimum(last_S1))[:, 0]

    return _grown(next_logits, rows, ends, choose)


def beam(
    next_logits: NextLogits,
    rows: int,
    ends: Ends,
    *,
    beams: int = 5,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """The text of the highest log-probability / length ** length_penalty that `beams` wide search
    finds; the sequences are those of transformers' generate with early_stopping=False. The text of
    each row with `first`, and `last` if it came.

    Args:
        next_logits: the model.
        rows: texts to write.
        ends: where they begin and end.
        beams: sequences that are kept of each row, 1 or more.
        length_penalty: above 0 favours long texts, below short ones; the length counts the tokens
            after the first, the last among them.
    """
    searches = [_Beam([(0.0, [ends.first])], []) for _ in range(rows)]
    for _ in range(1, ends.length):
        open_ = [row for row, search in enumerate(searches) if search.live]
        if not open_:
            break
        row_S = [row for row in open_ for _ in searches[row].live]
        known_ST = torch.tensor([ids for row in open_ for _, ids in searches[row].live])
        scores_SV = next_logits(torch.tensor(row_S), known_ST).float().log_softmax(1)
        start = 0
        for row in open_:
            count = len(searches[row].live)
            _widen(searches[row], scores_SV[start : start + count], ends, beams, length_penalty)
            start += count
    return [search.ended[0][1] for search in searches]


def _widen(search: _Beam, scores_KV: Tensor, ends: Ends, beams: int, length_penalty: float) -> None:
    """One more token: of the best 2 K continuations, K go on; those of the best K that end have.

    A search is over when K texts have ended and none that goes on is better than the worst of them.
    """
    known = [ids for _, ids in search.live]
    past_K1 = torch.tensor([[score] for score, _ in search.live], device=scores_KV.device)
    flat, vocabulary = (past_K1 + scores_KV).flatten(), scores_KV.shape[1]
    top = flat.topk(min(2 * beams, len(flat)))
    length = len(known[0])  # tokens after the first, with the new one
    full = length + 1 == ends.length
    search.live = []
    for place, (score, at) in enumerate(
        zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ):
        ids = [*known[at // vocabulary], at % vocabulary]
        if not (full or ids[-1] == ends.last):
            search.live.append((score, ids))
        elif place < beams:
            search.ended.append((score / length**length_penalty, ids))
    search.live = search.live[:beams]
    search.ended = sorted(search.ended, key=lambda one: -one[0])[:beams]
    if not search.live or len(search.ended) < beams:
        return
    if search.live[0][0] / length**length_penalty <= search.ended[-1][0]:
        search.live = []


def _grown(
    next_logits: NextLogits, rows: int, ends: Ends, choose: Callable[[Tensor, Tensor], Tensor]
) -> list[list[int]]:
    """Texts that grow by one chosen token at a time until their end."""
    texts = [[ends.first] for _ in range(rows)]
    open_ = list(range(rows))
    for _ in range(1, ends.length):
        if not open_:
            break
        row_S = torch.tensor(open_)
        known_ST = torch.tensor([texts[row] for row in open_])
        chosen_S = choose(next_logits(row_S, known_ST).float(), row_S)
        for row, token in zip(open_, chosen_S.tolist(), strict=True):
            texts[row].append(token)
        open_ = [row for row in open_ if texts[row][-1] != ends.last]
    return texts
