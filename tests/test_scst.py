"""Self-critical training: drawn by the sample, worth what CIDEr-D says, and better captions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.data import storage, tokens
from diptych.data.batch import Batch
from diptych.data.draws import row_key
from diptych.data.index import Manifest
from diptych.data.pack import Sample
from diptych.data.tokens import Text
from diptych.errors import DataError, RecipeError
from diptych.finetune import ngram_table, scst
from diptych.finetune.caption import captions
from diptych.finetune.decode import greedy
from diptych.finetune.metrics.cider import CiderD
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task
from diptych.pretrain.writer import WORTH, Writer

Rows = Callable[..., Batch]
Small = Callable[..., Run]
WRITERS = ("prefix", "show_tell", "attend_tell")
MORE = {"prefix": "", "show_tell": ", width: 32, dropout: 0", "attend_tell": ", width: 32"}
MORE["attend_tell"] += ", dropout: 0, penalty: 0"


@pytest.fixture
def table(rows: Rows, text: Text, tmp_path: Path) -> str:
    """Of the captions of 40 pictures."""
    known = ngram_table.count([[f"a picture with number {number}"] for number in range(40)])
    url = storage.absolute(str(tmp_path / "ngrams.json"))
    storage.write(url, ngram_table.written(known))
    return url


def critical(small: Small, kind: str, table: str, more: str = "") -> Run:
    both = f"[{{kind: scst, table: '{table}'{more}}}, {{kind: {kind}{MORE[kind]}}}]"
    return small(f"objectives={both}", "model.width=32")


def at(batch: Batch, step: int | None, text: Text) -> Batch:
    texts = tuple(text.decode(ids.tolist()) for ids in batch.tokens_BL)
    return replace(batch, step=step, texts=texts)


def drawn(task: Task, batch: Batch, table: str) -> Batch:
    [writer] = [o for o in task.objectives if isinstance(o, Writer)]
    return scst.critical(task, writer, batch, scst.weights_at(table), None)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_loss_is_the_papers(
    kind: str, small: Small, text: Text, rows: Rows, table: str
) -> None:
    torch.manual_seed(0)
    task = critical(small, kind, table).task(text)
    batch = at(rows(6), 3, text)
    sampled = [text.decode(ids.tolist()) for ids in drawn(task, batch, table).tokens_BL]
    best = captions(task, text, batch, greedy)
    batch = replace(batch, texts=(*sampled[:3], *best[3:]))  # what is worth much, and less
    made = drawn(task, batch, table)
    worth_B = scst.advantages(sampled, best, [[one] for one in batch.texts], scst.weights_at(table))
    assert (worth_B > 1).any() and (worth_B < -1).any()
    torch.testing.assert_close(made.arrays[WORTH].double(), worth_B, rtol=1e-4, atol=1e-5)
    wanted_B = _reinforce(task.eval(), batch, made, worth_B)
    losses = task.train()(batch)
    found = losses.sums
    torch.testing.assert_close(found[f"{kind}.loss"][0], wanted_B.sum(), rtol=1e-3, atol=1e-4)
    losses.total.backward()
    uphill = {p: p.grad for p in task.parameters() if p.grad is not None}
    steep = torch.stack([slope.norm() for slope in uphill.values()]).norm()
    sides = list[Tensor]()
    for way in (0.01, -0.02):  # a step along the gradient, and as far behind
        for param, slope in uphill.items():
            param.data.add_(slope, alpha=way / float(steep))
        sides.append(_reinforce(task.eval(), batch, made, worth_B).mean())
    assert float(sides[0] - sides[1]) / 0.02 == pytest.approx(float(steep), rel=0.02)
    assert float(found["scst.loss"][0]) == 0
    reward = scst.rewards(sampled, [[one] for one in batch.texts], scst.weights_at(table)).sum()
    assert float(found["scst.sampled"][0]) == pytest.approx(float(reward), rel=1e-4, abs=1e-4)


def _reinforce(task: Task, batch: Batch, made: Batch, worth_B: Tensor) -> Tensor:
    """The paper's loss of the drawn texts, each word told by what decoding is told by."""
    [writer] = [o for o in task.objectives if isinstance(o, Writer)]
    follow, (high, wide) = writer.follow(task, batch), made.tokens_BL.shape
    log_p_BT = torch.zeros(high, wide - 1)
    for place in range(1, wide):
        said_BV = follow(torch.arange(high), made.tokens_BL[:, :place]).log_softmax(1)
        log_p_BT[:, place - 1] = said_BV.gather(1, made.tokens_BL[:, place : place + 1])[:, 0]
    return scst.loss(log_p_BT, made.real_BL[:, 1:], worth_B)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_drawn_hangs_on_step_and_sample_alone(
    kind: str, small: Small, text: Text, rows: Rows, table: str
) -> None:
    torch.manual_seed(0)
    task = critical(small, kind, table).task(text)
    batch = at(rows(6), 3, text)
    whole, again = drawn(task, batch, table), drawn(task, batch, table)
    assert torch.equal(whole.tokens_BL, again.tokens_BL)
    texts = [ids[real].tolist() for ids, real in zip(whole.tokens_BL, whole.real_BL, strict=True)]
    halves = [drawn(task, batch.take(first, first + 3), table) for first in (0, 3)]
    parts = [
        ids[real].tolist()
        for half in halves
        for ids, real in zip(half.tokens_BL, half.real_BL, strict=True)
    ]
    assert parts == texts
    later = drawn(task, replace(batch, step=4), table)
    assert later.tokens_BL.tolist() != whole.tokens_BL.tolist()
    special = torch.tensor([id for id in text.special if id not in text.special[2:4]])
    assert not torch.isin(whole.tokens_BL[whole.real_BL], special).any()
    assert task.training


def test_evaluation_reads_the_texts_themselves(
    small: Small, text: Text, rows: Rows, table: str
) -> None:
    torch.manual_seed(0)
    task = critical(small, "prefix", table).task(text)
    torch.manual_seed(0)
    plain = small("objectives=[{kind: prefix}]", "model.width=32").task(text)
    plain.load_state_dict(task.state_dict())
    batch = at(rows(4), None, text)
    theirs, ours = plain.eval()(batch).sums, task.eval()(batch).sums
    assert ours["prefix.loss"] == theirs["prefix.loss"]
    assert "scst.sampled" not in ours


@pytest.mark.parametrize("kind", ["prefix", "attend_tell"])
def test_cider_rises_over_cross_entropy(
    kind: str, small: Small, rows: Rows, tmp_path: Path
) -> None:
    """Of five people two say the same and three begin alike, but go on each in their own way: word
    by word the likeliest caption is that of one person. Rewarded, it becomes that of two."""
    words = tuple(
        ["cat", "dog", "sun", "cup", "tree", "boat", "fish", "hat", "moon", "leaf", "door", "shoe"]
    )
    said = [
        [f"a {color} circle"] * 2 + [f"the {word}" for word in words[3 * at : 3 * at + 3]]
        for at, color in enumerate(("red", "blue", "teal", "gray"))
    ]
    every = [one for five in said for one in five]
    text, url = tokens.from_text(tokens.learn(every * 9, 100), 12), f"{tmp_path}/ngrams.json"
    storage.write(url, ngram_table.written(ngram_table.count(said)))
    weights, (ids_BL, real_BL) = scst.weights_at(url), text.encode(every)
    batch = rows(4).pick(torch.arange(4).repeat_interleave(5))
    batch = replace(
        batch,
        tokens_BL=ids_BL,
        real_BL=real_BL,
        draws_B=torch.tensor([row_key(0, number) for number in range(20)]),
        fields=tuple({"captions": five} for five in said for _ in five),
    )
    torch.manual_seed(0)
    task = small(f"objectives=[{{kind: {kind}{MORE[kind]}}}]", "model.width=32").task(text)
    _train(task, batch, 80, 1e-2)
    before = _cider(task, text, batch, weights, said)
    rewarded = critical(small, kind, url, ", references: captions").task(text)
    rewarded.load_state_dict(task.state_dict())
    _train(rewarded, batch, 40, 2e-3, steps=True)
    assert _cider(rewarded, text, batch, weights, said) > before + 0.4 > 0.4


def _train(task: Task, batch: Batch, count: int, lr: float, steps: bool = False) -> None:
    optimiser = torch.optim.AdamW(task.parameters(), lr, weight_decay=0)
    for step in range(count):
        optimiser.zero_grad()
        task(replace(batch, step=step if steps else None)).total.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimiser.step()


def _cider(task: Task, text: Text, batch: Batch, weights: CiderD, said: list[list[str]]) -> float:
    """Of the greedy caption of each fifth row."""
    found = captions(task, text, batch, greedy)[::5]
    return float(scst.rewards(found, said, weights).mean())


def test_it_stands_beside_one_writer_and_nothing_else(small: Small, table: str) -> None:
    for others in ("", ", {kind: mlm}", ", {kind: prefix}, {kind: mlm}"):
        with pytest.raises(RecipeError, match="scst trains one objective that writes"):
            small(f"objectives=[{{kind: scst, table: '{table}'}}{others}]")


def test_references_of_a_record(small: Small, text: Text, rows: Rows, table: str) -> None:
    torch.manual_seed(0)
    task = critical(small, "prefix", table).task(text)
    [writer] = [o for o in task.objectives if isinstance(o, Writer)]
    own = at(rows(2), 0, text)
    listed = replace(own, fields=tuple({"captions": [one]} for one in own.texts))
    weights = scst.weights_at(table)
    found = scst.critical(task, writer, listed, weights, "captions")
    assert torch.equal(found.arrays[WORTH], drawn(task, own, table).arrays[WORTH])
    with pytest.raises(DataError, match=r"^0: .*no captions in the field 'captions'"):
        scst.critical(task, writer, own, weights, "captions")


def test_the_table_is_that_of_the_captions(
    samples: Callable[..., list[Sample]], dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    made = samples(6)
    key, members = made[0]
    twin = ("twin", {**members, "txt": b"Something else."})
    other = {"json": json.dumps({"captions": ["a cat", "the cat"]}).encode()}
    manifest = dataset([[*made, twin]])
    told = CliRunner().invoke(app, ["data", "ngrams", manifest.url, "--out", f"{tmp_path}/t.json"])
    assert told.exit_code == 0, told.output
    found = ngram_table.read(storage.absolute(f"{tmp_path}/t.json"))
    assert found.images == 6
    assert found.having[("something", "else")] == 1
    texts = ngram_table.captions(manifest)
    assert found == ngram_table.count(texts)
    assert [members["txt"].decode(), "Something else."] in texts
    assert ngram_table._texts(other, "captions", key) == ["a cat", "the cat"]
    with pytest.raises(DataError, match="has no captions in the field 'captions'"):
        ngram_table.captions(manifest, "captions")


def test_a_file_that_is_no_table(tmp_path: Any) -> None:
    (tmp_path / "t.json").write_text('{"images": "many"}')
    with pytest.raises(DataError, match=r"t\.json is no table of n-grams .*data ngrams"):
        ngram_table.read(storage.absolute(f"{tmp_path}/t.json"))
    with pytest.raises(DataError, match="Captions of 1 images"):
        ngram_table.count([["a cat"]])
