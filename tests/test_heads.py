"""Heads of statements and of boxes: they learn what the picture shows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import DataError, RecipeError
from diptych.finetune.heads.reasoning import beside
from diptych.pretrain.evaluate import evaluate, grouped
from diptych.pretrain.run import Run
from diptych.pretrain.task import Losses, Task

Rows = Callable[..., Batch]
FOUND = "model={kind: single_stream, width: 16, heads: 2, depth: 1, image_size: 16, tokens: 12, "
FOUND += "visual: {kind: regions, count: 4, values: 3}}"


def squares(rows: Rows, text: Text, count: int = 64) -> Batch:
    """A white square of 8 pixels on black; the statement says left or right, by turns."""
    batch, generator = rows(count), torch.Generator().manual_seed(3)
    place_B2 = torch.randint(0, 9, (count, 2), generator=generator)
    image_BCHW = torch.zeros_like(batch.image_BCHW)
    for row, (x, y) in enumerate(place_B2.tolist()):
        image_BCHW[row, :, y : y + 8, x : x + 8] = 255
    words = ["a picture" if row % 2 else "with number" for row in range(count)]
    tokens_BL, real_BL = text.encode(words)
    fields: list[dict[str, Any]] = []
    for row, (x, y) in enumerate(place_B2.tolist()):
        box = [x / 16, y / 16, (x + 8) / 16, (y + 8) / 16]
        fields.append({"label": (x < 4) == bool(row % 2), "box": box})
    return replace(
        batch, image_BCHW=image_BCHW, tokens_BL=tokens_BL, real_BL=real_BL, fields=tuple(fields)
    )


def learn(task: Task, batch: Batch, steps: int) -> Losses:
    optimiser = torch.optim.AdamW(task.parameters(), 5e-3, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        task(batch).total.backward()
        optimiser.step()
    return task.eval()(batch)


def accuracy(losses: Losses, kind: str) -> float:
    hits, tries = losses.sums[f"{kind}.accuracy"]
    return float(hits / tries)


def test_boxes_are_learned_from_pixels(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    batch, run = squares(rows, text), small("objectives=[{kind: grounding}]")
    torch.manual_seed(0)
    task = run.task(text)
    before = accuracy(task(batch), "grounding")
    after = accuracy(learn(task, batch, 150), "grounding")
    assert after > 0.85 and after > before + 0.3
    objective = task.objectives[0]
    seen, _ = task.scores(batch)
    found_B4 = objective.boxes(task.heads["grounding"], seen)  # pyright: ignore[reportAttributeAccessIssue]
    assert found_B4.shape == (64, 4) and bool(((found_B4 >= 0) & (found_B4 <= 1)).all())


def test_a_region_is_chosen_among_those_that_are_there(
    small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    batch, generator = rows(32), torch.Generator().manual_seed(1)
    right_B = torch.randint(0, 3, (32,), generator=generator)
    boxes_BN4 = torch.zeros(32, 4, 4)  # the fourth has no area: it only fills up
    boxes_BN4[:, :3] = torch.tensor(
        [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0]]
    )
    features_BN3 = torch.zeros(32, 4, 3)
    features_BN3[torch.arange(32), right_B, 0] = 1.0
    truth = [{"box": boxes_BN4[row, place].tolist()} for row, place in enumerate(right_B.tolist())]
    truth[0] = {"box": [0.6, 0.6, 1.0, 1.0]}  # no region is there
    truth[1] = {}
    batch = replace(
        batch, arrays={"features": features_BN3, "boxes": boxes_BN4}, fields=tuple(truth)
    )
    torch.manual_seed(0)
    task = small("objectives=[{kind: grounding, way: choose}]", FOUND).task(text)
    losses = learn(task, batch, 60)
    hits, tries = losses.sums["grounding.accuracy"]
    assert (int(hits), int(tries)) == (30, 31)
    assert int(losses.sums["grounding.loss"][1]) == 30


def test_statements_are_learned(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    batch, run = squares(rows, text), small("objectives=[{kind: reasoning}]")
    torch.manual_seed(0)
    task = run.task(text)
    assert accuracy(learn(task, batch, 120), "reasoning") > 0.9
    blind = replace(batch, image_BCHW=batch.image_BCHW.roll(1, 0))
    assert accuracy(task(blind), "reasoning") < 0.8
    unsaid = replace(batch, fields=tuple({} for _ in batch.fields))
    losses = task(unsaid)
    assert int(losses.sums["reasoning.loss"][1]) == 0 and float(losses.total.detach()) == 0


def test_what_is_no_box_is_named(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    batch, run = rows(2), small("objectives=[{kind: grounding}]")
    task = run.task(text)
    for wrong in ([4, 4, 9, 9], [0.5, 0, 0.2, 1], "left", [0, 0, 1]):
        with pytest.raises(DataError, match="shares of the sides"):
            task(replace(batch, fields=({"box": wrong}, {})))
    chooses = small("objectives=[{kind: grounding, way: choose}]").task(text)
    with pytest.raises(DataError, match="way: regress"):
        chooses(replace(batch, fields=({"box": [0, 0, 1, 1]}, {})))


def test_two_images_are_one_picture() -> None:
    found = beside(Image.new("RGB", (20, 10), "red"), Image.new("L", (40, 40), 255))
    assert found.size == (30, 10)
    assert found.getpixel((0, 0)) == (255, 0, 0) and found.getpixel((29, 9)) == (255, 255, 255)


ASKED = {"answer": "yes", "label": "yes", "box": [0, 0, 0.5, 0.5]}
HEADS = (
    "{kind: vqa, answers: [yes, no]}",
    "{kind: vqa, soft: true, answers: [yes, no]}",
    "{kind: reasoning}",
    "{kind: grounding}",
)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("other", ["itm", "prefix, share: 0.5", "mlm, seq2seq: 0.5"])
def test_only_rows_that_see_their_own_text_are_asked(
    head: str, other: str, small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    task = small(f"objectives=[{{kind: {other}}}, {head}]").task(text).eval()
    batch = replace(rows(16), fields=(ASKED,) * 16)
    kind = task.objectives[1].kind
    seen, scores = task.scores(batch)
    causal_B = seen.view.causal_B
    asked_B = seen.view.matched_B if causal_B is None else ~causal_B
    assert 0 < int(asked_B.sum()) < 16
    assert torch.equal(scores[kind].valid_B, asked_B)
    assert int(scores[kind].tries) == int(asked_B.sum())
    if other != "itm":  # whose neighbours a slice has not
        alone = [task.scores(batch.take(row, row + 1))[1][kind] for row in range(16)]
        assert int(scores[kind].hits) == sum(int(score.hits) for score in alone)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("other", ["prefix", "show_tell", "attend_tell", "mlm, seq2seq: 1.0"])
def test_a_head_beside_one_that_reads_all_from_left_to_right_is_refused(
    head: str, other: str, small: Callable[..., Run]
) -> None:
    objectives = f"objectives=[{{kind: {other}}}, {head}]"
    kind, name = other.partition(",")[0], head[1:-1].split(",")[0].removeprefix("kind: ")
    with pytest.raises(RecipeError, match=f"{kind} has every text .* {name} cannot see"):
        small(objectives)
    with pytest.raises(RecipeError, match="from left to right"):
        small(objectives, f"mixing={{{kind}+{name}: 1, {kind}: 1}}")
    assert small(objectives, f"mixing={{{kind}: 1, {name}: 1}}")


EVERY = (
    "{kind: itm}",
    "{kind: mrm, share: 1.0}",
    "{kind: mlm}",
    "{kind: wra}",
    "{kind: prefix, share: 0.5}",
    *HEADS,
)


@pytest.mark.parametrize("objective", EVERY)
def test_samples_that_were_left_out_count_as_nothing(
    objective: str, small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    task = small(f"objectives=[{objective}]").task(text).eval()
    batch = replace(rows(8), fields=(ASKED,) * 8)
    none = task(replace(batch, hole_B=torch.ones(8, dtype=torch.bool))).sums
    assert {int(count) for _, count in none.values()} == {0}
    holes_B = torch.arange(8) >= 4  # a group of `itm` whole
    fields = (ASKED,) * 4 + ({},) * 4
    holed = evaluate(task, [replace(batch, hole_B=holes_B, fields=fields)])
    assert holed == evaluate(task, [batch.take(0, 4)])
    if "vqa" in objective:
        parts = grouped("label")
        split = evaluate(task, [replace(batch, hole_B=holes_B, fields=fields)], parts=parts)
        assert split.keys() == {p + name for name in holed for p in ("", "label=yes.")}


@pytest.mark.parametrize("moved", ["flip=0.5", "crop=random", "resize=20"])
def test_boxes_are_of_pictures_that_stay_whole(moved: str, small: Callable[..., Run]) -> None:
    pixels, grounding = f"data.pixels.{moved}", "objectives=[{kind: mlm}, {kind: grounding}]"
    with pytest.raises(RecipeError, match=f"shares of the whole picture, which {pixels} would"):
        small(grounding, pixels)
    assert small(grounding, "data.pixels.resize=16", "data.pixels.exact=true")
    assert small(grounding, pixels, FOUND), "which looks at no pixels"
    assert small(pixels)
