"""Show and Tell; Show, Attend and Tell: against loops written from the papers, and learned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.finetune.caption import captions, next_logits
from diptych.finetune.decode import greedy
from diptych.finetune.heads import AttendTell, ShowTell
from diptych.pretrain.objective import Sizes
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
Small = Callable[..., Run]
KINDS = ("show_tell", "attend_tell")
REGIONS = "model={kind: single_stream, width: 16, heads: 2, depth: 1, tokens: 12, image_size: 16, "
REGIONS += "visual: {kind: regions, count: 4, values: 5}}"


def one(kind: str, more: str = "") -> str:
    return f"objectives=[{{kind: {kind}, width: 32{more}}}]"


def gates(cell: torch.nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM's step, written out: input, forget, cell and output gates (Hochreiter 1997)."""
    i, f, g, o = (x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh).chunk(
        4, -1
    )
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_show_and_tell_is_the_papers() -> None:
    torch.manual_seed(0)
    head: Any = ShowTell(width=6, dropout=0).head(Sizes(width=8, vocabulary=20, regions=8))
    regions, tokens = torch.randn(1, 4, 8), torch.tensor([[2, 7, 9]])
    real = torch.tensor([[True, True, True, False]])
    found = head.words(head(regions, real, tokens).states_BLH)[0]
    project, norm = head.image
    image = F.layer_norm(project(regions[0, :3].mean(0)), (6,), norm.weight, norm.bias)
    h, c = gates(head.cell, image, torch.zeros(6), torch.zeros(6))
    for place, token in enumerate(tokens[0]):
        h, c = gates(head.cell, head.table.weight[token], h, c)
        torch.testing.assert_close(found[place], head.words(h))


def test_show_attend_and_tell_is_the_papers() -> None:
    torch.manual_seed(0)
    objective = AttendTell(width=6, dropout=0, penalty=0.5)
    head: Any = objective.head(Sizes(width=8, vocabulary=20, regions=8))
    regions, tokens = torch.randn(1, 4, 8), torch.tensor([[2, 7, 9]])
    real = torch.tensor([[True, True, True, False]])
    read = head(regions, real, tokens)
    a = regions[0, :3]
    h, c = head.begin(a.mean(0)).tanh().chunk(2)
    looked = torch.zeros(3)
    for place, token in enumerate(tokens[0]):
        energy = [head.energy(F.relu(head.key(each) + head.query(h))) for each in a]
        alpha = torch.cat(energy).softmax(0)
        looked = looked + (alpha if place < 2 else 0)  # the last token has no word after it
        z = head.gate(h).sigmoid() * (alpha[:, None] * a).sum(0)
        y = head.table.weight[token]
        h, c = gates(head.cell, torch.cat([y, z]), h, c)
        torch.testing.assert_close(read.looks_BLN[0, place, :3], alpha)
        torch.testing.assert_close(
            head.words(read.states_BLH[0, place]),
            head.words(y + head.of_state(h) + head.of_look(z)),
        )
    assert (read.looks_BLN[0, :, 3] == 0).all()
    picked = torch.tensor([[True, True, False]])
    expected = 0.5 * ((1 - looked) ** 2).sum() / 2
    torch.testing.assert_close(objective.extra(read, real, picked)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_each_next_word(
    kind: str, small: Small, text: Text, rows: Rows
) -> None:
    """Teacher forcing is what decoding sees, word by word; the caption leaks through no region."""
    torch.manual_seed(0)
    task = small(one(kind)).task(text).eval()
    batch = rows(3)
    said = task(batch).sums
    loss = said[f"{kind}.words" if kind == "attend_tell" else f"{kind}.loss"][0]
    other = replace(batch, tokens_BL=batch.tokens_BL.roll(1, 0), real_BL=batch.real_BL.roll(1, 0))
    total = torch.zeros(())
    for row in range(3):
        follow = next_logits(task, other)  # knows the images alone
        ids = batch.tokens_BL[row][batch.real_BL[row]]
        for place in range(1, len(ids)):
            logits = follow(torch.tensor([row]), ids[None, :place])[0]
            total += F.cross_entropy(logits, ids[place]) / (len(ids) - 1)
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-4)
    if kind == "attend_tell":
        assert said[f"{kind}.loss"][0] > loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_reaches_the_words_and_the_model(
    kind: str, small: Small, text: Text, rows: Rows
) -> None:
    task: Task = small(one(kind, ", dropout: 0")).task(text)
    task(rows(4)).total.backward()
    unused = [n for n, p in task.heads.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused
    stem = next(p for n, p in task.model.named_parameters() if "vision" in n or "stem" in n)
    assert stem.grad is not None
    assert stem.grad.any()


@pytest.mark.parametrize(
    ("kind", "pictures", "steps"), [("show_tell", 8, 200), ("attend_tell", 4, 100)]
)
def test_captions_that_were_learned(
    kind: str, pictures: int, steps: int, small: Small, text: Text, rows: Rows
) -> None:
    torch.manual_seed(0)
    wanted = [f"{number} a picture" for number in range(pictures)]
    tokens_BL, real_BL = text.encode(wanted)
    boxes = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(pictures, 4, 4)
    alike = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])  # in all of them
    features = (alike + torch.randn(pictures, 1, 5)).expand(pictures, 4, 5)
    batch = replace(rows(pictures), tokens_BL=tokens_BL, real_BL=real_BL)
    batch = replace(batch, arrays={"features": features, "boxes": boxes})
    task = small(one(kind, ", dropout: 0"), REGIONS).task(text)
    optimiser = torch.optim.AdamW(task.parameters(), 1e-2, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        task(batch).total.backward()
        optimiser.step()
    assert captions(task, text, batch) == wanted
    turned = batch.pick(torch.arange(pictures).flip(0))
    assert captions(task, text, turned, greedy) == wanted[::-1]


def test_rows_with_a_foreign_text_are_not_learned(small: Small, text: Text, rows: Rows) -> None:
    settings = "objectives=[{kind: itm, negatives: 0.5}, {kind: show_tell, width: 16}]"
    task = small(settings).task(text).eval()
    batch = rows(16)
    view = task.look(batch)
    for objective in task.objectives:
        view = objective.hide(view, task.words)
    assert 0 < int(view.matched_B.sum()) < 16
    assert task(batch).sums["show_tell.loss"][1] == view.matched_B.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_only_fill_up_say_nothing(
    kind: str, small: Small, text: Text, rows: Rows
) -> None:
    task = small(one(kind), REGIONS).task(text).eval()
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5]] * 3 + [[0.0] * 4]).repeat(2, 1, 1)
    boxes[1] = 0  # a row without any region
    features = torch.randn(2, 4, 5)
    batch = replace(rows(2), arrays={"features": features, "boxes": boxes})
    other = features.clone()
    other[0, 3] = 9.0
    losses = [
        task(replace(batch, arrays={"features": each, "boxes": boxes})).total
        for each in (features, other)
    ]
    assert losses[0].isfinite()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    assert len(captions(task, text, batch, greedy)) == 2
