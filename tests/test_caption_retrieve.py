"""Captions and ranks from small tasks that learned eight pairs by heart."""

import functools
from collections.abc import Callable

import pytest
import torch

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RunError
from diptych.finetune.caption import captions
from diptych.finetune.decode import greedy, nucleus
from diptych.finetune.retrieve import matching, score_retrieval
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
TWO = "model={kind: two_stream, width: 32, heads: 2, image_size: 16, tokens: 12, text_depth: 1, "
TWO += "visual_depth: 1, cross_depth: 1, shared: 16, visual: {kind: patches, patch: 4}}"


def learned(run: Run, text: Text, batch: Batch, steps: int, lr: float = 1e-2) -> Task:
    torch.manual_seed(0)
    task = run.task(text)
    optimiser = torch.optim.AdamW(task.parameters(), lr, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        task(batch).total.backward()
        optimiser.step()
    return task


def test_captions_of_images_that_were_learned(
    small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    batch = rows(8)
    run = small("objectives=[{kind: prefix}]", "model.width=32")
    task = learned(run, text, batch, 60)
    wanted = [f"a picture with number {number}" for number in range(8)]
    assert captions(task, text, batch) == wanted
    assert captions(task, text, batch, greedy) == wanted
    assert captions(task, text, batch, functools.partial(nucleus, share=0.0)) == wanted
    turned = batch.pick(torch.arange(8).flip(0))
    assert captions(task, text, turned) == wanted[::-1]
    assert task.training


def test_ranks_of_pairs_that_were_learned(
    small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    batch = rows(8)
    # A row's draw never changes here: a text that is exchanged once would be so always.
    run = small("objectives=[{kind: itm, negatives: 0.001}, {kind: contrastive}]", TWO)
    task = learned(run, text, batch, 40, 3e-3)
    group_N = torch.arange(8)
    found = score_retrieval(task, batch, group_N)
    assert found["image_to_text.r1"] == found["text_to_image.r1"] == 1
    assert set(score_retrieval(task, batch, group_N, depth=3)) == set(found)
    judge = matching(task.eval(), batch)
    own = judge(group_N, group_N)
    torch.testing.assert_close(judge(group_N.flip(0), group_N.flip(0)), own.flip(0))
    turned = batch.pick(group_N.roll(1))
    assert score_retrieval(task, turned, group_N)["image_to_text.r1"] == 1


def test_a_run_that_cannot_says_so(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    task, batch = small("objectives=[{kind: mlm}]").task(text), rows(4)
    with pytest.raises(RunError, match="writes no captions"):
        captions(task, text, batch)
    with pytest.raises(RunError, match="judges no pairs"):
        matching(task, batch)
    with pytest.raises(RunError, match="two_stream"):
        score_retrieval(task, batch, torch.arange(4))
