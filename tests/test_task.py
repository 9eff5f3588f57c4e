"""What must hold of a task for any slicing over ranks and micro-batches to add up."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.pretrain.evaluate import evaluate, shuffled
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Rows = Callable[[int], Batch]
Small = Callable[..., Run]
Make = Callable[..., Task]


@pytest.fixture
def task(small: Small, text: Text) -> Make:
    """`task("model.width=32")`: a small task, always initialised alike."""

    def make(*settings: str) -> Task:
        torch.manual_seed(0)
        return small(*settings).task(text)

    return make


def test_slices_of_a_batch_add_up_to_it(task: Make, rows: Rows) -> None:
    """Losses, hits and gradients of 16 rows, against four slices of 4."""
    whole, parts, batch = task(), task(), rows(16)
    one = whole(batch)
    one.total.backward()
    four = [parts(batch.take(first, first + 4)) for first in range(0, 16, 4)]
    torch.stack([part.total / 4 for part in four]).sum().backward()
    assert float(one.total.detach()) == pytest.approx(
        sum(float(p.total.detach()) / 4 for p in four), 1e-6
    )
    for name, (total, count) in one.sums.items():
        assert float(total) == pytest.approx(sum(float(p.sums[name][0]) for p in four), 1e-5), name
        assert int(count) == sum(int(p.sums[name][1]) for p in four), name
    pairs = zip(whole.named_parameters(), parts.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_what_is_hidden(small: Small, task: Make, rows: Rows) -> None:
    run, batch = small(), rows(400)
    found = task()
    view = found.look(batch)
    for objective in run.objectives:
        view = objective.hide(view, found.words)
    masked = view.targets["mlm"] >= 0
    special = torch.isin(view.targets["mlm"], torch.tensor(found.words.special))
    assert not special.any()
    lost = view.hidden_BN.any(1)
    assert not masked[lost].any()  # a word and the region it names are never hidden together
    assert masked[~lost].any(1).all()  # at least one word
    assert lost.float().mean() == pytest.approx(0.2, abs=0.06)
    assert (~view.targets["itm"]).float().mean() == pytest.approx(0.4, abs=0.08)
    shown = view.image_BCHW.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).transpose(1, 2)
    assert (shown[view.hidden_BN] == 0).all()


def test_padding_changes_nothing(task: Make, rows: Rows) -> None:
    found, batch = task().eval(), rows(4)
    long = int(batch.real_BL.sum(1).max())
    short = replace(batch, tokens_BL=batch.tokens_BL[:, :long], real_BL=batch.real_BL[:, :long])
    padded, cut = found(batch).total.detach(), found(short).total.detach()
    assert float(padded) == pytest.approx(float(cut), 1e-5)


@pytest.mark.parametrize("stream", ["text", "image"])
def test_a_blind_model_is_blind(stream: str, task: Make, rows: Rows) -> None:
    found, batch = task(f"model.streams={stream}").eval(), rows(8)
    seen = found.model(found.look(batch)).pooled_BD
    images, words = batch.image_BCHW.flip(0), batch.tokens_BL.flip(0)
    unseen = {"image_BCHW": images} if stream == "text" else {"tokens_BL": words}
    again = found.model(found.look(replace(batch, **unseen))).pooled_BD
    torch.testing.assert_close(seen, again)
    other = replace(batch, image_BCHW=images, tokens_BL=words)
    assert not torch.allclose(seen, found.model(found.look(other)).pooled_BD)


@pytest.mark.parametrize("setting", ["model.width=18", "model.grid=3", "objectives.itm.group=1"])
def test_sizes_that_cannot_be_are_refused(setting: str, small: Small) -> None:
    with pytest.raises(RecipeError):
        small("model.heads=4", setting)


def test_the_wrong_image_is_another_picture(rows: Rows) -> None:
    batch = rows(6)
    plain = shuffled(batch)
    assert torch.equal(plain.image_BCHW, batch.image_BCHW.roll(1, 0))
    assert plain.keys == batch.keys and torch.equal(plain.tokens_BL, batch.tokens_BL)
    image_BCHW = batch.image_BCHW[torch.tensor([0, 0, 1, 1, 1, 0])]
    several = shuffled(replace(batch, image_BCHW=image_BCHW))
    assert several.keys == batch.keys
    assert torch.equal(several.image_BCHW, batch.image_BCHW[torch.tensor([1, 1, 0, 0, 0, 1])])


def test_a_picture_is_what_a_row_shows_in_all(rows: Rows) -> None:
    batch = rows(4)
    blank = replace(batch, image_BCHW=torch.zeros_like(batch.image_BCHW))
    features = torch.tensor([1, 2, 2, 3]).view(4, 1, 1).expand(4, 2, 3).half()
    found = shuffled(replace(blank, arrays={"features": features})).arrays["features"]
    assert found[:, 0, 0].tolist() == [3, 1, 1, 2]


def test_a_row_without_another_picture_has_no_wrong_one(task: Make, rows: Rows) -> None:
    batch, found = rows(4), task()
    assert shuffled(batch.take(0, 1)).rows == 0
    same = replace(batch, image_BCHW=batch.image_BCHW[:1].expand_as(batch.image_BCHW))
    assert shuffled(same).rows == 0
    whole = evaluate(found, [batch, same], change=shuffled)
    assert whole == evaluate(found, [batch], change=shuffled)
