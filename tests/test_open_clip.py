"""The model `clip` is open_clip's: there and back, and the same loss as its ClipLoss."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import ExportError, StorageError
from diptych.finetune.export import clip
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

MODEL = "{kind: clip, width: 16, heads: 2, depth: 1, tokens: 12, image_size: 16, patch: 4, "
MODEL += "visual_width: 24, visual_heads: 3, visual_depth: 1}"
OBJECTIVES = "objectives=[{kind: contrastive}]"


@pytest.fixture
def trained(small: Callable[..., Run], text: Text) -> tuple[Run, Task]:
    torch.manual_seed(0)
    run = small(f"model={MODEL}", OBJECTIVES)
    task = run.task(text)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return run, task


def test_open_clip_opens_it_and_it_comes_back(
    trained: tuple[Run, Task], text: Text, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    (run, task), out = trained, tmp_path / "clip"
    clip.require(run)
    clip.write(out, run, task, text, {"steps": 3})
    proof = clip.prove(out, run, task, text, rows(6))
    assert proof["loader"] == "open_clip" and proof["process"] != os.getpid()
    assert set(proof["max_difference"]) == {"image_features", "text_features", "logits", "tokens"}
    record, state = clip.read(str(out))
    again: Any = run.model_copy(
        update={"model": type(run.model)(**{k: v for k, v in record.items() if k != "kind"})}
    )
    assert again.model == run.model
    other = again.task(text)
    other.load_state_dict(state)
    batch = rows(8)
    assert torch.equal(other(batch).total, task(batch).total)
    with pytest.raises(StorageError):
        clip.read(str(tmp_path / "nowhere"))


def test_its_loss_is_clip_loss(
    trained: tuple[Run, Task], text: Text, rows: Callable[..., Batch]
) -> None:
    from open_clip.loss import ClipLoss

    _, task = trained
    batch = rows(8)
    losses = task(batch)
    seen, _ = task.scores(batch)
    wanted = ClipLoss()(seen.towers.image_BE, seen.towers.text_BE, task.heads["contrastive"]())
    torch.testing.assert_close(losses.total, wanted, atol=1e-6, rtol=1e-6)
    short = replace(batch, tokens_BL=batch.tokens_BL[:, :9], real_BL=batch.real_BL[:, :9])
    torch.testing.assert_close(task(short).total, losses.total)  # as buckets cut it


def test_other_models_are_refused(small: Callable[..., Run]) -> None:
    with pytest.raises(ExportError, match="no model like 'vlp'"):
        clip.require(small())
    with pytest.raises(ExportError, match="not trained with the objective 'contrastive'"):
        clip.require(small(f"model={MODEL}", "objectives=[{kind: itm}]"))
