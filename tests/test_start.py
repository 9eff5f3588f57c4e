"""Starting from a finished run: the encoder's weights and nothing else, or one clear error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diptych.data import storage, tokens
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, StorageError
from diptych.finetune.start import fresh_task, start, trained_task
from diptych.pretrain.checkpoint import folder, open_checkpoint
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

Small = Callable[..., Run]
Keep = Callable[..., RunDir]
VQA = "objectives=[{kind: vqa, answers: [yes, no, maybe]}]"


@pytest.fixture
def pretrained(small: Small, text: Text) -> Task:
    """A pretraining task whose weights nothing else has."""
    torch.manual_seed(12345)
    return small().task(text)


@pytest.fixture
def source(small: Small, text: Text, pretrained: Task, keep: Keep) -> RunDir:
    return keep(small(), pretrained, text)


def test_it_takes_the_encoder_and_not_the_heads(
    small: Small, text: Text, pretrained: Task, source: RunDir
) -> None:
    task = fresh_task(small(VQA, f"start_from={source.url}"), text)
    scratch = fresh_task(small(VQA), text)
    theirs, untouched = pretrained.state_dict(), scratch.state_dict()
    for name, ours in task.state_dict().items():
        if name.startswith("model."):
            assert torch.equal(ours, theirs[name]), name
        else:
            assert name.startswith("heads.vqa.")
            assert torch.equal(ours, untouched[name]), name
    assert not torch.equal(theirs["model.words.weight"], untouched["model.words.weight"])


def test_it_says_what_it_took_what_is_fresh_and_what_was_left(
    small: Small, text: Text, source: RunDir
) -> None:
    task = small(VQA).task(text)
    found = start(task, open_checkpoint(source.url))
    assert set(found.taken) == {f"model.{name}" for name in task.model.state_dict()}
    assert {name.split(".")[1] for name in found.fresh} == {"vqa"}
    assert {name.split(".")[1] for name in found.left} == {"mlm", "mrm"} | {"itm"}
    assert set(found.taken) | set(found.fresh) == set(task.state_dict())


def test_a_head_that_the_source_has_too_is_taken(
    small: Small, text: Text, pretrained: Task, source: RunDir
) -> None:
    """Pretraining may be gone on with, with fewer objectives."""
    run = small("objectives=[{kind: mlm}]", f"start_from={source.url}")
    ours, theirs = fresh_task(run, text).state_dict(), pretrained.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("heads.mlm.") for name in ours)


def test_a_head_of_another_size_begins_fresh(small: Small, text: Text, keep: Keep) -> None:
    three, four = small(VQA), small(VQA.replace("maybe", "maybe, never"))
    place = keep(three, three.task(text), text)
    found = start(four.task(text), open_checkpoint(place.url))
    assert set(found.fresh) == {"heads.vqa.3.weight", "heads.vqa.3.bias"}


def test_the_seed_decides_the_heads_alone(small: Small, text: Text, source: RunDir) -> None:
    one, two = (
        fresh_task(small(VQA, f"start_from={source.url}", f"seed={seed}"), text).state_dict()
        for seed in (1, 2)
    )
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {name for name in one if name.startswith("model.")} <= same
    assert "heads.vqa.0.weight" not in same
    again = fresh_task(small(VQA, f"start_from={source.url}", "seed=1"), text).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_the_newest_checkpoint_is_the_one_that_is_taken(
    small: Small, text: Text, pretrained: Task, keep: Keep
) -> None:
    place = keep(small(), small().task(text), text, step=3)
    newer = keep(small(), pretrained, text, step=12)
    old, new = (storage.local_path(folder(found.url, s)) for found, s in ((place, 3), (newer, 12)))
    new.rename(old.parent / new.name)
    task = fresh_task(small(VQA, f"start_from={place.url}"), text)
    assert torch.equal(task.model.words.weight, pretrained.model.words.weight)


def test_a_missing_source_is_named(small: Small, text: Text, tmp_path: Path) -> None:
    run = small(VQA, f"start_from={tmp_path}/nowhere")
    with pytest.raises(CheckpointError, match=r"/nowhere has no complete checkpoint\..* none"):
        fresh_task(run, text)


def test_a_source_in_a_missing_bucket_is_named(small: Small, text: Text, bucket: str) -> None:
    run = small(VQA, "start_from=s3://nowhere-at-all/runs/vlp")
    with pytest.raises((CheckpointError, StorageError), match=r"s3://nowhere-at-all"):
        fresh_task(run, text)


def test_a_source_without_a_finished_checkpoint_is_named(
    small: Small, text: Text, source: RunDir
) -> None:
    storage.delete(storage.join(folder(source.url, 3), "manifest.json"))
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        fresh_task(small(VQA, f"start_from={source.url}"), text)


def test_other_sizes_are_named(small: Small, text: Text, source: RunDir) -> None:
    run = small(VQA, f"start_from={source.url}", "model.width=24")
    with pytest.raises(
        CheckpointError, match=r"model\.\S+ is \(.*24.*\) here and \(.*16.*\) there"
    ):
        fresh_task(run, text)


def test_another_vocabulary_of_the_same_size_is_named(
    small: Small, text: Text, pretrained: Task, keep: Keep
) -> None:
    """The shapes agree, so every word would silently have become another."""
    words = text.tokenizer.get_vocab()
    upside = text.tokenizer.to_str()
    for one, two in (("picture", "number"),):
        upside = upside.replace(f'"{one}"', '"@@"').replace(f'"{two}"', f'"{one}"')
        upside = upside.replace('"@@"', f'"{two}"')
    other = tokens.from_text(upside, text.length)
    assert other.size == text.size
    assert other.tokenizer.get_vocab() != words
    place = keep(small(), pretrained, other)
    with pytest.raises(CheckpointError, match=r"another vocabulary .*--set data\.tokenizer=file"):
        fresh_task(small(VQA, f"start_from={place.url}"), text)


def test_a_finished_run_must_have_every_weight(small: Small, text: Text, source: RunDir) -> None:
    found = open_checkpoint(source.url)
    assert not trained_task(small(), text, found).training
    with pytest.raises(CheckpointError, match=r"lacks heads\.vqa\."):
        trained_task(small(VQA), text, found)
