"""Texts from a model of the next token, against transformers' generate and against all texts."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from diptych.finetune import scst
from diptych.finetune.decode import Ends, NextLogits, beam, greedy, nucleus
from diptych.finetune.metrics.cider import weights

ENDS = Ends(first=1, last=4, length=10)
VOCABULARY = 13


@pytest.fixture(scope="module")
def gpt() -> Any:
    """A random GPT-2, sharp enough that its texts end at various places."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    sizes |= {"bos_token_id": ENDS.first, "eos_token_id": ENDS.last, "initializer_range": 0.9}
    found = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes))
    return found.eval()


def prefixed(gpt: Any, prefix_BP: Tensor) -> NextLogits:
    """The model of texts that go on each row's own prefix, as an image would stand before it."""

    @torch.no_grad()
    def next_logits(row_S: Tensor, known_ST: Tensor) -> Tensor:
        logits: Tensor = gpt(torch.cat([prefix_BP[row_S], known_ST], 1)).logits
        return logits[:, -1]

    return next_logits


def generated(gpt: Any, prefix_BP: Tensor, **how: Any) -> list[list[int]]:
    """What transformers writes after each prefix and the first token, without padding."""
    start = torch.cat([prefix_BP, torch.full((len(prefix_BP), 1), ENDS.first)], 1)
    texts = gpt.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=ENDS.length - 1,
        bos_token_id=ENDS.first,
        eos_token_id=ENDS.last,
        pad_token_id=0,
        do_sample=False,
        **how,
    )
    found: list[list[int]] = []
    for text in texts[:, prefix_BP.shape[1] :].tolist():
        end = text.index(ENDS.last) + 1 if ENDS.last in text else len(text)
        found.append(text[:end])
    return found


PREFIXES = torch.arange(32).view(16, 2) % 10 + 3


def test_greedy_is_that_of_transformers(gpt: Any) -> None:
    ours = greedy(prefixed(gpt, PREFIXES), len(PREFIXES), ENDS)
    assert ours == generated(gpt, PREFIXES)
    assert len({len(text) for text in ours}) > 2


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_beam_search_is_that_of_transformers(gpt: Any, beams: int, length_penalty: float) -> None:
    model, rows = prefixed(gpt, PREFIXES), len(PREFIXES)
    ours = beam(model, rows, ENDS, beams=beams, length_penalty=length_penalty)
    how = {"num_beams": beams, "length_penalty": length_penalty, "early_stopping": False}
    assert ours == generated(gpt, PREFIXES, **how)


def test_one_beam_is_greedy_and_a_row_does_not_know_the_others(gpt: Any) -> None:
    model, rows = prefixed(gpt, PREFIXES), len(PREFIXES)
    assert beam(model, rows, ENDS, beams=1, length_penalty=0) == greedy(model, rows, ENDS)
    alone = [beam(prefixed(gpt, PREFIXES[row : row + 1]), 1, ENDS)[0] for row in range(4)]
    assert alone == beam(model, rows, ENDS)[:4]


def test_a_wide_beam_finds_the_best_of_all_texts(gpt: Any) -> None:
    ends, model = Ends(first=1, last=4, length=3), prefixed(gpt, PREFIXES)

    def scores(*known: int) -> Tensor:
        return model(torch.tensor([0]), torch.tensor([[ends.first, *known]])).log_softmax(1)[0]

    texts: dict[tuple[int, ...], float] = {(ends.last,): float(scores()[ends.last])}
    for first in range(VOCABULARY):
        if first != ends.last:
            so_far = float(scores()[first])
            texts |= {(first, last): so_far + float(p) for last, p in enumerate(scores(first))}
    best = max(texts, key=lambda text: texts[text])
    assert beam(model, 1, ends, beams=VOCABULARY, length_penalty=0) == [[ends.first, *best]]


def test_nucleus_draws_what_it_should() -> None:
    chances = torch.tensor([0.5, 0.05, 0.15, 0.3])

    def fixed(row_S: Tensor, known_ST: Tensor) -> Tensor:
        return chances.log().expand(len(row_S), -1)

    ends = Ends(first=0, last=9, length=2)

    def shares(share: float, temperature: float = 1.0) -> dict[int, float]:
        generator = torch.Generator().manual_seed(0)
        texts = nucleus(
            fixed, 20_000, ends, share=share, temperature=temperature, generator=generator
        )
        drawn = Counter(text[1] for text in texts)
        return {token: count / 20_000 for token, count in drawn.items()}

    assert shares(1.0) == pytest.approx({0: 0.5, 1: 0.05, 2: 0.15, 3: 0.3}, abs=0.015)
    assert shares(0.9) == pytest.approx({0: 0.526, 2: 0.158, 3: 0.316}, abs=0.015)
    assert shares(0.6) == pytest.approx({0: 0.625, 3: 0.375}, abs=0.015)
    assert shares(0.0) == {0: 1.0}
    assert shares(1.0, temperature=0.01) == {0: 1.0}


def test_nucleus_is_repeatable_and_of_no_share_greedy(gpt: Any) -> None:
    model, rows = prefixed(gpt, PREFIXES), len(PREFIXES)

    def drawn(seed: int) -> list[list[int]]:
        return nucleus(model, rows, ENDS, generator=torch.Generator().manual_seed(seed))

    assert drawn(1) == drawn(1) != drawn(2)
    assert nucleus(model, rows, ENDS, share=0) == greedy(model, rows, ENDS)
    assert all(text[0] == ENDS.first and len(text) <= ENDS.length for text in drawn(3))


def test_a_better_caption_than_the_greedy_one_is_reinforced() -> None:
    references = [["A red circle.", "one red circle"], ["a blue square"], ["two teal triangles"]]
    tokens = [[text.lower().rstrip(".").split() for text in texts] for texts in references]
    sampled = ["a red circle", "a teal square", "two teal triangles"]
    plain = ["a circle", "a blue square", "two teal triangles"]
    worth_B = scst.advantages(sampled, plain, references, weights(tokens))
    assert worth_B[0] > 0 > worth_B[1] and worth_B[2] == 0
    log_p_BT = torch.full((3, 4), -1.0, requires_grad=True)
    real_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    loss_B = scst.loss(log_p_BT, real_BT, worth_B)
    loss_B.sum().backward()
    assert loss_B.tolist() == pytest.approx(worth_B.tolist())
    assert log_p_BT.grad is not None
    assert torch.equal(log_p_BT.grad.sign(), -worth_B.sign()[:, None] * real_BT)
