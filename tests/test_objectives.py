"""Each objective against an independent computation of the same loss."""

import multiprocessing
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss
from scipy.optimize import linprog
from torch import Tensor
from torch.nn import functional as F

from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.pretrain.gather import everyone
from diptych.pretrain.objective import Seen, Sizes, Towers, View, Words
from diptych.pretrain.objectives import (
    Contrastive,
    ImageTextMatching,
    MaskedLanguage,
    PrefixLanguage,
    WordRegionAlignment,
)
from diptych.pretrain.objectives.wra import ipot
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
Small = Callable[..., Run]
SIZES = Sizes(width=8, vocabulary=50, regions=4, region_values=12, shared=8)


@pytest.fixture
def task(small: Small, text: Text) -> Callable[..., Task]:
    """`task("model.width=32")`: a small task, always initialised alike."""

    def make(*settings: str) -> Task:
        torch.manual_seed(0)
        return small(*settings).task(text)

    return make


def features(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit vectors of texts and images."""
    generator = torch.Generator().manual_seed(seed)
    text, image = torch.randn(2, rows, 8, generator=generator, dtype=torch.float64)
    return F.normalize(text.float(), dim=1), F.normalize(image.float(), dim=1)


def view_of(batch: Batch) -> View:
    """The whole of a batch, with nothing hidden."""
    return View(
        batch=batch,
        image_BCHW=batch.image_BCHW.float(),
        tokens_BL=batch.tokens_BL,
        real_BL=batch.real_BL,
        hidden_BN=torch.zeros(batch.rows, 4, dtype=torch.bool),
        matched_B=torch.ones(batch.rows, dtype=torch.bool),
    )


def seen_of(view: View, text_BE: Tensor, image_BE: Tensor, pair: Any = None) -> Seen:
    rows = view.batch.rows
    return Seen(
        view=view,
        tokens_BLD=torch.zeros(rows, 12, 8),
        regions_BND=torch.zeros(rows, 4, 8),
        pooled_BD=torch.zeros(rows, 8),
        word_weights_VD=torch.zeros(50, 8),
        towers=Towers(text_BE, image_BE, pair),
    )


# Contrastive.


def contrast(batch: Batch, text_BE: Tensor, image_BE: Tensor) -> tuple[Tensor, Any]:
    objective = Contrastive()
    head = objective.head(SIZES)
    score = objective.score(head, seen_of(view_of(batch), text_BE, image_BE))
    return (score.loss_B * score.valid_B).sum() / batch.rows, head


def rank(place: int, world: int, port: int, batch: Batch, answers: Any) -> None:
    """Both losses on one of `world` gloo ranks, and the gradients of this rank's features."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=place, world_size=world
    )
    found: list[Any] = []
    for theirs in (False, True):
        text, image = (part.requires_grad_() for part in features(4, seed=place))
        if theirs:
            scale = torch.tensor(0.07).reciprocal().requires_grad_()
            clip = ClipLoss(local_loss=True, gather_with_grad=True, rank=place, world_size=world)
            with warnings.catch_warnings():  # open_clip gathers with what torch deprecates
                warnings.simplefilter("ignore", FutureWarning)
                loss = clip(image, text, scale)
            parts = torch.autograd.grad(loss, [text, image, scale])
            slope = parts[2] * scale.detach()  # of the logarithm
        else:
            loss, head = contrast(batch, text, image)
            loss.backward()
            assert text.grad is not None and image.grad is not None
            parts, slope = (text.grad, image.grad), head.log_scale.grad
        found.append([loss.item(), parts[0].numpy(), parts[1].numpy(), slope.item()])
    with torch.no_grad():  # an evaluation on one rank must wait for no other
        alone = everyone(text)[0].shape[0]
    answers.put((place, alone, found))
    dist.destroy_process_group()


def test_contrastive_is_open_clips_on_two_ranks(rows: Rows) -> None:
    """And both are the loss of one process that sees all the rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [
        context.Process(target=rank, args=(place, 2, port, rows(4, first=4 * place), answers))
        for place in range(2)
    ]
    for each in ranks:
        each.start()
    told = sorted([answers.get(timeout=60) for _ in ranks], key=lambda told: told[0])
    for each in ranks:
        each.join()
    sides = zip(*[features(4, seed=place) for place in range(2)], strict=True)
    text, image = (torch.cat(side).requires_grad_() for side in sides)
    loss, head = contrast(rows(8), text, image)
    loss.backward()
    assert text.grad is not None and image.grad is not None
    for place, alone, (ours, theirs) in told:
        assert alone == 4
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)
        own = slice(4 * place, 4 * place + 4)
        np.testing.assert_allclose(ours[1] / 2, text.grad[own], atol=1e-6)
        np.testing.assert_allclose(ours[2] / 2, image.grad[own], atol=1e-6)
    assert np.mean([ours[0] for _, _, (ours, _) in told]) == pytest.approx(loss.item(), 1e-5)
    slope = np.mean([ours[3] for _, _, (ours, _) in told])
    assert slope == pytest.approx(head.log_scale.grad.item(), 1e-4)


def test_the_same_words_and_foreign_texts_are_no_negatives(rows: Rows) -> None:
    text, image = features(6, seed=3)
    batch, objective = rows(6), Contrastive()
    head = objective.head(SIZES)
    six = objective.score(head, seen_of(view_of(batch), text, image))
    alike = replace(batch, tokens_BL=batch.tokens_BL[[0, 1, 2, 3, 0, 5]])
    fewer = objective.score(head, seen_of(view_of(alike), text, image))
    kept = [0, 1, 2, 3, 5]
    five = objective.score(head, seen_of(view_of(rows(6).take(0, 5)), text[kept], image[kept]))
    torch.testing.assert_close(fewer.loss_B[0], five.loss_B[0])
    torch.testing.assert_close(fewer.loss_B[1], six.loss_B[1])
    foreign = replace(view_of(batch), matched_B=torch.arange(6) != 4)
    without = objective.score(head, seen_of(foreign, text, image))
    torch.testing.assert_close(without.loss_B[kept], five.loss_B)
    assert without.valid_B.tolist() == [True] * 4 + [False, True]
    assert int(without.tries) == 10
    short = replace(batch, tokens_BL=batch.tokens_BL[:, :9], real_BL=batch.real_BL[:, :9])
    again = objective.score(head, seen_of(view_of(short), text, image))
    torch.testing.assert_close(again.loss_B, six.loss_B)


def test_the_temperature_has_a_floor_that_it_can_leave() -> None:
    head: Any = Contrastive().head(SIZES)
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    scale = head()
    scale.backward()
    assert float(scale.detach()) == pytest.approx(100, 1e-5)
    assert float(head.log_scale.grad) > 0


def test_a_model_without_towers_is_refused(small: Small, text: Text) -> None:
    for setting in ("[{kind: contrastive}]", "[{kind: itm, hard: true}]"):
        with pytest.raises(RecipeError, match="two_stream"):
            small(f"objectives={setting}").task(text)


@pytest.mark.parametrize("kind", ["mlm", "prefix"])
def test_words_that_see_no_image_are_not_asked_for(kind: str, small: Small, text: Text) -> None:
    size = "width: 16, heads: 2, visual_width: 8, visual_heads: 2, patch: 8"
    clip = f"model={{kind: clip, {size}, image_size: 16, tokens: 12}}"
    with pytest.raises(RecipeError, match=f"'{kind}'.*never see"):
        small(clip, f"objectives=[{{kind: contrastive}}, {{kind: {kind}}}]").task(text)


# Hard negatives.


def test_hard_negatives_are_similar_foreign_texts_of_the_group(rows: Rows) -> None:
    batch = rows(16)
    batch = replace(
        batch, tokens_BL=batch.tokens_BL.index_copy(0, torch.tensor([1]), batch.tokens_BL[:1])
    )
    text, _ = features(16, seed=1)
    image = text[(torch.arange(16) ^ 1)]  # each image looks like its neighbour's text
    paired: list[Tensor] = []

    def pair(row_B: Tensor) -> Tensor:
        paired.append(row_B)
        return torch.zeros(len(row_B), 8)

    objective = ImageTextMatching(hard=True, group=8, temperature=0.01)
    head = objective.head(SIZES)
    score = objective.score(head, seen_of(view_of(batch), text, image, pair))
    [row_B] = paired
    assert (row_B[2:] == torch.arange(2, 16) ^ 1).all()
    assert not set(row_B[:2].tolist()) & {0, 1}  # the same words are no mismatch
    assert (row_B // 8 == torch.arange(16) // 8).all()
    assert (int(score.tries), score.valid_B.all()) == (32, True)
    half = objective.score(head, seen_of(view_of(batch.take(8, 16)), text[8:], image[8:], pair))
    assert (paired[1] + 8 == row_B[8:]).all()
    torch.testing.assert_close(half.loss_B, score.loss_B[8:])
    alone = batch.take(0, 2)  # nothing but the same words: the right pair alone is scored
    only = objective.score(head, seen_of(view_of(alone), text[:2], image[:2], pair))
    assert int(only.tries) == 2
    expected = F.cross_entropy(head(torch.zeros(2, 8)), torch.ones(2).long(), reduction="none")
    torch.testing.assert_close(only.loss_B, expected)


# Word-region alignment.


def cheapest(cost: np.ndarray) -> float:
    """The exact optimum by linear programming."""
    rows, columns = cost.shape
    limits = np.zeros((rows + columns, rows * columns))
    for row in range(rows):
        limits[row, row * columns : (row + 1) * columns] = 1
    for column in range(columns):
        limits[rows + column, column::columns] = 1
    shares = [1 / rows] * rows + [1 / columns] * columns
    return linprog(cost.ravel(), A_eq=limits, b_eq=shares).fun


@pytest.mark.parametrize(("words", "regions"), [(1, 4), (3, 3), (5, 4), (4, 9)])
def test_ipot_finds_the_cheapest_plan(words: int, regions: int) -> None:
    generator = torch.Generator().manual_seed(words)
    cost = 2 * torch.rand(1, 6, 10, generator=generator)
    rows, columns = torch.arange(6)[None] < words, torch.arange(10)[None] < regions
    plan = ipot(cost, rows, columns, beta=0.5, iterations=1000)[0]
    found = float((plan * cost[0]).sum())
    assert found == pytest.approx(cheapest(cost[0, :words, :regions].double().numpy()), abs=1e-3)
    assert float(plan[words:].sum() + plan[:, regions:].sum()) == 0
    torch.testing.assert_close(
        plan[:words].sum(1), torch.full((words,), 1 / words), atol=1e-3, rtol=0
    )
    short = ipot(cost, rows, columns, beta=0.5, iterations=50)[0]
    assert float((short * cost[0]).sum()) == pytest.approx(found, abs=0.05)


def test_alignment_draws_words_to_regions_and_foreign_ones_away(rows: Rows, text: Text) -> None:
    batch, objective = rows(3), WordRegionAlignment()
    words = small_words(text)
    view = objective.hide(
        replace(view_of(batch), matched_B=torch.tensor([True, False, True])), words
    )
    special = torch.isin(batch.tokens_BL, torch.tensor(words.special))
    assert torch.equal(view.targets["wra"], batch.real_BL & ~special)
    empty = batch.real_BL.clone()
    empty[2] = False
    view = replace(view, targets={"wra": view.targets["wra"] & empty})
    tokens_BLD = torch.randn(3, 12, 8).requires_grad_()
    seen = seen_of(view, *features(3, 0))
    seen = Seen(
        view=view, tokens_BLD=tokens_BLD, regions_BND=torch.randn(3, 4, 8),
        pooled_BD=seen.pooled_BD, word_weights_VD=seen.word_weights_VD,
    )  # fmt: skip
    score = objective.score(None, seen)
    assert score.valid_B.tolist() == [True, True, False]
    near, far, none = score.loss_B.detach().tolist()
    assert near > 0 > far and none == 0
    score.loss_B.sum().backward()
    assert tokens_BLD.grad is not None
    moved = tokens_BLD.grad.abs().sum(2) > 0
    assert torch.equal(moved, view.targets["wra"])
    assert tokens_BLD.grad.isfinite().all()


def small_words(text: Text) -> Any:
    return Words(size=text.size, mask=text.mask, special=text.special, empty=(), joined=text.joined)


# Masked words, whole and from left to right.


def test_whole_words_are_hidden_whole(rows: Rows) -> None:
    learned = tokens.from_text(tokens.learn(["ab", "abc", "abcd", "bcd", "cab"] * 2, 14), 16)
    words = small_words(learned)
    assert words.joined
    ids, real = learned.encode(["abcd cab abcabc dab bcd", "abc"] * 40)
    noise = rows(80)
    batch = replace(noise, tokens_BL=ids, real_BL=real)
    whole = MaskedLanguage(rate=0.3, whole=True).hide(view_of(batch), words).targets["mlm"] >= 0
    parts = MaskedLanguage(rate=0.3).hide(view_of(batch), words).targets["mlm"] >= 0
    joined = torch.isin(ids, torch.tensor(words.joined))
    assert (joined & real).any()
    torn = joined[:, 1:] & (whole[:, 1:] != whole[:, :-1])
    assert not torn.any()
    assert (joined[:, 1:] & (parts[:, 1:] != parts[:, :-1])).any()
    assert whole.any(1).all()
    with pytest.raises(RecipeError, match="does not mark them"):
        MaskedLanguage(whole=True).hide(view_of(batch), replace(words, joined=None))


@pytest.mark.parametrize("objectives", ["[{kind: prefix}]", "[{kind: mlm, seq2seq: 1.0}]"])
def test_a_row_read_from_left_to_right_never_looks_ahead(
    objectives: str, task: Callable[..., Task], rows: Rows
) -> None:
    found, batch = task(f"objectives={objectives}").eval(), rows(6)
    view = found.look(batch)
    causal = replace(view, causal_B=torch.arange(6) % 2 == 0)
    later = view.tokens_BL.clone()
    later[:, 5:] = later[:, 5:].roll(1, 0)
    assert (later != view.tokens_BL)[:, 5:].any(1).all()
    one = found.model(causal)
    two = found.model(replace(causal, tokens_BL=later))
    same = (one.tokens_BLD - two.tokens_BLD).abs().amax(2) < 1e-6
    assert same[::2, :5].all() and not same[1::2, :5].any()
    regions = (one.regions_BND - two.regions_BND).abs().amax((1, 2)) < 1e-6
    assert regions.tolist() == [True, False] * 3
    other = found.model(replace(causal, image_BCHW=view.image_BCHW.flip(0)))
    assert not torch.allclose(one.tokens_BLD[0], other.tokens_BLD[0])
    both = found.model(view)
    torch.testing.assert_close(both.tokens_BLD[1::2], one.tokens_BLD[1::2])
    assert found.scores(batch)[0].view.causal_B is not None


def test_prefix_rows_are_its_own(task: Callable[..., Task], rows: Rows) -> None:
    found = task("objectives=[{kind: itm}, {kind: prefix, share: 0.5}, {kind: mlm}]").eval()
    batch = rows(64)
    seen, scores = found.scores(batch)
    causal_B = seen.view.causal_B
    assert causal_B is not None and 16 < int(causal_B.sum()) < 48
    targets = seen.view.targets
    assert not (targets["mlm"] >= 0)[causal_B].any()
    assert not (targets["prefix"] >= 0)[~causal_B].any()
    assert torch.equal(scores["itm"].valid_B, ~causal_B)
    shown = seen.view.tokens_BL[causal_B]
    ahead = targets["prefix"][causal_B]
    real = seen.view.real_BL[causal_B]
    assert torch.equal(ahead[:, :-1][real[:, 1:]], shown[:, 1:][real[:, 1:]])
    assert (ahead[:, :-1][~real[:, 1:]] == -100).all() and (ahead[:, -1] == -100).all()


def test_prefix_language_learns_the_next_word(task: Callable[..., Task], rows: Rows) -> None:
    found, batch = task("objectives=[{kind: prefix}]", "model.width=32"), rows(4)
    optimiser = torch.optim.AdamW(found.parameters(), 1e-2)
    losses = found(batch)
    for _ in range(40):
        losses = found(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert PrefixLanguage().kind in found.heads
    assert float(losses.total.detach()) < 0.6
