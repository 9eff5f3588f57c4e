"""The VQA head with several people's answers, and the vocabulary that is built from a dataset."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.config import plain
from diptych.data.batch import Batch
from diptych.data.index import Manifest
from diptych.data.tokens import Text
from diptych.errors import DataError, RecipeError
from diptych.finetune.heads import VisualQuestion
from diptych.finetune.heads.vqa import people
from diptych.finetune.parts import KINDS
from diptych.finetune.vocabulary import records, vocabulary
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Task

TEN = ["Red", "red.", "a red", "red", "red", "red", "blue", "blue", "dark red", "teal"]
ANSWERS = ["red", "blue", "yes", "2"]


def asked(small: Callable[..., Run], **head: Any) -> Run:
    values = plain(small())
    values["objectives"] = [{"kind": "vqa", "answers": ANSWERS, **head}]
    return revise(values, [], KINDS, source="vqa")


def with_fields(batch: Batch, *fields: dict[str, Any]) -> Batch:
    return replace(batch, fields=fields)


@pytest.fixture
def batch(rows: Callable[[int], Batch]) -> Batch:
    return with_fields(
        rows(5),
        {"answers": TEN},
        {"answers": [{"answer": "two", "answer_id": 1}, {"answer": "2"}, {"answer": "Two!"}]},
        {"answer": "Yes"},
        {"answers": ["maroon", "pink"]},
        {"question": "is it?"},
    )


def soft(small: Callable[..., Run], text: Text) -> Task:
    torch.manual_seed(0)
    return asked(small, soft=True).task(text)


def test_soft_targets_are_the_accuracies(small: Any, text: Text, batch: Batch) -> None:
    task = soft(small, text)
    head = task.objectives[0]
    assert isinstance(head, VisualQuestion)
    seen, scores = task.scores(batch)
    wanted = torch.tensor([[1, 0.6, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0.0] * 4, [0.0] * 4])
    torch.testing.assert_close(head.soft_targets(seen), wanted)
    found = scores["vqa"]
    assert found.valid_B.tolist() == [True, True, True, False, False]
    logits_BA = head.logits(task.heads["vqa"], seen)
    p_BA = logits_BA.sigmoid()
    loss_B = -(wanted * p_BA.log() + (1 - wanted) * (1 - p_BA).log()).sum(1)
    torch.testing.assert_close(found.loss_B, loss_B)
    best_B = logits_BA.argmax(1)
    assert float(found.hits) == pytest.approx(float(wanted[torch.arange(5), best_B].sum()))
    assert int(found.tries) == 5


def test_the_soft_head_learns(small: Any, text: Text, batch: Batch) -> None:
    task = soft(small, text)
    optimiser = torch.optim.AdamW(task.parameters(), 1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        task(batch).total.backward()
        optimiser.step()
    hits, tries = task(batch).sums["vqa.accuracy"]
    assert float(hits / tries) == pytest.approx(3 / 5)


def test_slices_of_soft_rows_add_up(small: Any, text: Text, batch: Batch) -> None:
    task = soft(small, text)
    whole, parts = task(batch), [task(batch.take(row, row + 1)) for row in range(5)]
    for name, (total, count) in whole.sums.items():
        assert float(total.detach()) == pytest.approx(sum(float(p.sums[name][0]) for p in parts))
        assert int(count) == sum(int(p.sums[name][1]) for p in parts)


def test_the_plain_head_knows_one_answer(small: Any, text: Text, batch: Batch) -> None:
    """Cross-entropy of the one answer, as it is written or else as `data answers` prints it."""
    torch.manual_seed(0)
    task = asked(small).task(text)
    one = with_fields(batch, {"answer": "red"}, {"answer": "maroon"}, {"answer": "Two."}, {}, {})
    seen, scores = task.scores(one)
    head = task.objectives[0]
    assert isinstance(head, VisualQuestion)
    assert head.targets(seen).tolist() == [0, -100, 3, -100, -100]
    log_p = head.logits(task.heads["vqa"], seen).log_softmax(1)
    wanted = [-float(log_p[0, 0].detach()), 0, -float(log_p[2, 3].detach()), 0, 0]
    assert scores["vqa"].loss_B.tolist() == pytest.approx(wanted)


def test_answers_that_are_one_when_normal_are_a_mistake(small: Any) -> None:
    [head] = asked(small, answers=["no", "two", "2"]).objectives
    assert isinstance(head, VisualQuestion)
    assert [head.place(answer) for answer in ("2", "two", "Two", "No!", "none")] == [
        2,
        1,
        2,
        0,
        None,
    ]
    with pytest.raises(RecipeError, match="two are the same once normalised"):
        asked(small, answers=["two", "2"], soft=True)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"answers": ["A dog", "two"]}, ["dog", "2"]),
        ({"answers": [{"answer": "A dog"}], "answer": "cat"}, ["dog"]),
        ({"answers": "yes"}, ["yes"]),
        ({"answers": [], "answer": 5}, ["5"]),
        ({"answer": None}, []),
        ({"answers": [None, {}]}, []),
        ({}, []),
    ],
)
def test_people_of_a_record(fields: dict[str, Any], wanted: list[str]) -> None:
    assert people(fields) == wanted


def test_a_vocabulary_holds_the_most_useful_first() -> None:
    given = [{"answers": TEN}, {"answer": "Blue"}, {"answer": "two"}, {"answer": "2"}, {}]
    assert vocabulary(given) == ("2", "blue", "red")
    assert vocabulary(given, most=2) == ("2", "blue")
    assert vocabulary(given, least=0.3) == ("2", "blue", "red", "dark red", "teal")
    assert vocabulary(reversed(given)) == vocabulary(given)
    with pytest.raises(DataError, match="5 answers, 1 of them of use 2 or more"):
        vocabulary(given, least=2)


def test_a_vocabulary_from_shards(dataset: Callable[..., Manifest]) -> None:
    def sample(number: int, record: object) -> tuple[str, dict[str, bytes]]:
        return f"{number:03d}", {"json": json.dumps(record).encode(), "txt": b"x"}

    shards = [
        [sample(0, {"answer": "Yes"}), sample(1, {"answers": ["no", "No."]})],
        [sample(2, {"answer": "yes"}), ("003", {"txt": b"no record"})],
    ]
    manifest = dataset(shards)
    assert vocabulary(records(manifest)) == ("yes", "no")
    done = CliRunner().invoke(app, ["data", "answers", manifest.url])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == ["yes", "no"]
    values = [f"objectives.0.answers={done.stdout}"]
    run = {"objectives": [{"kind": "vqa", "answers": ["a", "b"]}]}
    from diptych.config import override

    assert override(run, values)["objectives"][0]["answers"] == ["yes", "no"]
    with pytest.raises(DataError, match="is a list, not an object"):
        list(records(dataset([[sample(0, [1])]], "other")))
