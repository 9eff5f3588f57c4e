"""Answers, rankings and boxes against what they must be."""

import math
import random

import pytest
import torch

from diptych.errors import DataError
from diptych.finetune.metrics import answers, boxes
from diptych.finetune.metrics.retrieval import ranks_by, reranked, retrieval, summary

NORMAL = {
    "The T-shirt.": "t shirt",
    "Two dogs, a cat": "2 dogs cat",
    "1,000": "1000",
    "1,000-2,000 (red)": "10002000 red",
    "3.5 m.": "3.5 m",
    "none": "0",
    "dont know": "don't know",
    "shouldntve": "shouldntve",
    "shouldn'tve": "shouldn't've",
    "somebody'd": "somebodyd",
    "red/white": "red white",
    "red / white": "red white",
    " yes\n": "yes",
    "U.S.": "us",
    "a": "",
    "": "",
}


@pytest.mark.parametrize("written", NORMAL)
def test_an_answer_becomes_normal(written: str) -> None:
    assert answers.normal(written) == NORMAL[written]


def test_accuracy_leaves_each_person_out_once() -> None:
    found = [answers.accuracy("a", ["a"] * agree + ["b"] * (10 - agree)) for agree in range(11)]
    assert found == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7)
    draw = random.Random(0)
    for _ in range(300):
        people = [draw.choice("abc") for _ in range(draw.randint(4, 12))]
        subsets = [people[:out] + people[out + 1 :] for out in range(len(people))]
        wanted = sum(min(1, rest.count("a") / 3) for rest in subsets) / len(people)
        assert answers.accuracy("a", people) == pytest.approx(wanted)


def test_accuracy_of_few_people() -> None:
    assert answers.accuracy("a", ["a"]) == 1
    assert answers.accuracy("b", ["a"]) == 0
    assert answers.accuracy("a", []) == 0
    assert answers.accuracy("a", ["a", "a"]) == answers.accuracy("a", ["a"] * 3) == 1
    assert answers.accuracy("a", ["a", "b"]) == 0.5


def test_targets_are_the_accuracy_of_each_answer() -> None:
    found = answers.targets(["red"] * 7 + ["blue"] * 2 + ["teal"])
    assert found == pytest.approx({"red": 1, "blue": 0.6, "teal": 0.3})


def test_retrieval_both_ways() -> None:
    """Three images, five texts; the last text is taken for another image's."""
    image_ID = torch.eye(3)
    text_TD = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.0, 0.9, 0.1]])
    found = retrieval(image_ID, text_TD, torch.tensor([0, 0, 1, 2, 2]))
    assert found["image_to_text.r1"] == 1
    assert found["text_to_image.r1"] == pytest.approx(4 / 5)
    assert found["text_to_image.r5"] == 1
    assert found["text_to_image.median_rank"] == 1
    assert retrieval(image_ID, image_ID.roll(1, 0))["image_to_text.r1"] == 0


def test_chance_is_chance_and_a_collapsed_model_is_last() -> None:
    image_ID = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    found = retrieval(image_ID, image_ID.flip(0))
    assert found["text_to_image.r10"] < 0.02
    assert 800 < found["image_to_text.median_rank"] < 1200
    same = torch.ones(20, 4)
    assert retrieval(same, same)["image_to_text.median_rank"] == 20
    assert retrieval(same * torch.nan, same)["image_to_text.r10"] == 0


def test_chunks_are_the_whole() -> None:
    draw = torch.Generator().manual_seed(1)
    image_ID, noise = torch.randn(1500, 8, generator=draw), torch.randn(1500, 8, generator=draw)
    text_TD = image_ID + noise
    whole = ranks_by(image_ID @ text_TD.T, torch.arange(1500), torch.arange(1500))
    found = retrieval(image_ID, text_TD)
    assert found["image_to_text.median_rank"] == summary(whole)["median_rank"]
    assert found["image_to_text.r5"] == summary(whole)["r5"]


def test_a_text_without_its_image_is_an_error() -> None:
    with pytest.raises(DataError, match="2 of 3 images"):
        retrieval(torch.eye(3), torch.eye(3), torch.tensor([0, 0, 1]))
    with pytest.raises(DataError, match="every image a text"):
        retrieval(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3]))
    with pytest.raises(DataError, match="4 texts"):
        retrieval(torch.eye(3), torch.eye(4))


def test_the_best_are_put_in_the_order_of_the_judge() -> None:
    similarity_QK = torch.tensor([[0.9, 0.8, 0.1, 0.7], [0.1, 0.2, 0.3, 0.9]])
    asked: list[tuple[int, int]] = []

    def judge(query_P: torch.Tensor, key_P: torch.Tensor) -> torch.Tensor:
        asked.extend(zip(query_P.tolist(), key_P.tolist(), strict=True))
        return -similarity_QK[query_P, key_P] - 100  # the other way round

    order = reranked(similarity_QK, 2, judge).argsort(1, descending=True)
    assert order.tolist() == [[1, 0, 3, 2], [2, 3, 1, 0]]
    assert sorted(asked) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    whole = reranked(similarity_QK, 99, judge).argsort(1, descending=True)
    assert whole.tolist() == similarity_QK.argsort(1).tolist()


def test_boxes_and_their_overlap() -> None:
    truth_B4 = torch.tensor([[0, 0, 2, 2]] * 5)
    boxes_B4 = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2], [0, 0, 2, 1], [5, 5, 6, 6], [2, 2, 0, 0]])
    assert boxes.iou(boxes_B4, truth_B4).tolist() == pytest.approx([1, 1 / 3, 0.5, 0, 0])
    assert boxes.accuracy(boxes_B4, truth_B4) == pytest.approx(2 / 5)
    assert boxes.accuracy(boxes_B4, truth_B4, at=0.3) == pytest.approx(3 / 5)
    assert boxes.iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0]
    assert boxes.accuracy(torch.empty(0, 4), torch.empty(0, 4)) == 0
    assert boxes.accuracy(torch.full((1, 4), math.nan), truth_B4[:1]) == 0
    with pytest.raises(DataError, match=r"\(3, 4\) and \(5, 4\)"):
        boxes.iou(boxes_B4[:3], truth_B4)
