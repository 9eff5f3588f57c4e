"""Visual question answering as classification over an answer vocabulary (Agrawal et al. 2015).

B rows, D width, A answers.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...pretrain.objective import Objective, Score, Seen, Sizes, answerable
from ..metrics import answers as human


class VisualQuestion(Objective):
    """L = -log p(answer | image, question), or with `soft` a yes or no to each answer.

    The question is the text of the sample; the answer is the `answer` of its JSON record. A row
    whose answer is not in the vocabulary is not trained on, and counts as wrong. Answers are
    compared as they are written, then normalised as in the VQA challenge.

    With `soft`, each answer's target is its accuracy against the record's `answers` by several
    people (or its one `answer`), L the sum of the binary cross-entropies (Teney et al. 2018), and
    the accuracy that of the VQA challenge; all answers are normalised.
    """

    kind: ClassVar[str] = "vqa"
    both_ways: ClassVar[bool] = True
    answers: tuple[str, ...] = Field(min_length=2)
    """The answer vocabulary; the order is the order of the logits."""
    soft: bool = False
    """Several people's answers, each right in part."""
    inner: int | None = Field(default=None, ge=1)
    """Width of the head's middle layer; by default twice that of the states."""

    @model_validator(mode="after")
    def _differ(self) -> "VisualQuestion":
        if self.soft and len({human.normal(answer) for answer in self.answers}) < len(self.answers):
            raise ValueError("answers: two are the same once normalised; leave one out")
        return self

    def head(self, sizes: Sizes) -> nn.Module:
        inner = self.inner or 2 * sizes.width
        return nn.Sequential(
            nn.Linear(sizes.width, inner),
            nn.GELU(),
            nn.LayerNorm(inner),
            nn.Linear(inner, len(self.answers)),
        )

    def logits(self, head: Any, seen: Seen) -> Tensor:
        return head(seen.pooled_BD).float()

    def score(self, head: Any, seen: Seen) -> Score:
        logits_BA = self.logits(head, seen)
        return self._soft(logits_BA, seen) if self.soft else self._one(logits_BA, seen)

    def _one(self, logits_BA: Tensor, seen: Seen) -> Score:
        targets_B, asked_B = self.targets(seen), answerable(seen.view)
        return Score(
            loss_B=F.cross_entropy(logits_BA, targets_B, reduction="none", ignore_index=-100),
            valid_B=(targets_B >= 0) & asked_B,
            hits=((logits_BA.argmax(1) == targets_B) & asked_B).sum(),
            tries=asked_B.sum(),
        )

    def _soft(self, logits_BA: Tensor, seen: Seen) -> Score:
        targets_BA, asked_B = self.soft_targets(seen), answerable(seen.view)
        loss_BA = F.binary_cross_entropy_with_logits(logits_BA, targets_BA, reduction="none")
        right_B = targets_BA.gather(1, logits_BA.argmax(1, keepdim=True))[:, 0]
        return Score(
            loss_B=loss_BA.sum(1),
            valid_B=(targets_BA > 0).any(1) & asked_B,
            hits=right_B.where(asked_B, 0.0).sum(),
            tries=asked_B.sum(),
        )

    def targets(self, seen: Seen) -> Tensor:
        """Index of each row's answer, -100 where the vocabulary lacks it."""
        given = [fields.get("answer") for fields in seen.view.batch.fields]
        found = [None if answer is None else self.place(str(answer)) for answer in given]
        places = [-100 if place is None else place for place in found]
        return torch.tensor(places, device=seen.pooled_BD.device)

    def place(self, answer: str) -> int | None:
        """Where an answer stands in the vocabulary: as it is written, or else normalised."""
        places = _places(self.answers)
        return places.get(answer, places.get(human.normal(answer)))

    def soft_targets(self, seen: Seen) -> Tensor:
        """Accuracy that each answer would have in each row, (B, A), 0 to 1."""
        index = {human.normal(answer): position for position, answer in enumerate(self.answers)}
        found_BA = torch.zeros(len(seen.pooled_BD), len(index))
        for row, fields in enumerate(seen.view.batch.fields):
            for answer, accuracy in human.targets(people(fields)).items():
                if answer in index:
                    found_BA[row, index[answer]] = accuracy
        return found_BA.to(seen.pooled_BD.device)


@functools.lru_cache(maxsize=8)  # asked for every row
def _places(answers: tuple[str, ...]) -> dict[str, int]:
    """The places of answers by themselves and by what they are normalised; of several that are one
    then, the first."""
    written = {answer: place for place, answer in enumerate(answers)}
    return {human.normal(answer): written[answer] for answer in reversed(answers)} | written


def people(fields: Mapping[str, Any]) -> list[str]:
    """The normal answers of a record: of its `answers`, texts or {"answer": text, ...} as in VQA
    v2, or else of its one `answer`."""
    given = fields.get("answers") or fields.get("answer")
    listed = given if isinstance(given, list | tuple) else [given]
    texts = (each.get("answer") if isinstance(each, Mapping) else each for each in listed)
    return [human.normal(str(text)) for text in texts if text is not None]
