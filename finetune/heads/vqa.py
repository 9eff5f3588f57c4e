"""Visual question answering as classification over an answer vocabulary (Agrawal et al. 2015).

B rows, D width, A answers.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ...pretrain.objective import Objective, Score, Seen, Sizes


class VisualQuestion(Objective):
    """L = -log p(answer | image, question).

    The question is the text of the sample; the answer is the `answer` of its JSON record. A row
    whose answer is not in the vocabulary is not trained on, and counts as wrong.
    """

    kind: ClassVar[str] = "vqa"
    answers: tuple[str, ...] = Field(min_length=2)
    """The answer vocabulary; the order is the order of the logits."""

    def head(self, sizes: Sizes) -> nn.Module:
        return nn.Sequential(
            nn.Linear(sizes.width, 2 * sizes.width),
            nn.GELU(),
            nn.LayerNorm(2 * sizes.width),
            nn.Linear(2 * sizes.width, len(self.answers)),
        )

    def logits(self, head: Any, seen: Seen) -> Tensor:
        return head(seen.pooled_BD).float()

    def score(self, head: Any, seen: Seen) -> Score:
        logits_BA = self.logits(head, seen)
        targets_B = self.targets(seen)
        valid_B = targets_B >= 0
        loss_B = F.cross_entropy(logits_BA, targets_B, reduction="none", ignore_index=-100)
        return Score(
            loss_B=loss_B,
            valid_B=valid_B,
            hits=(logits_BA.argmax(1) == targets_B).sum(),
            tries=torch.tensor(len(targets_B), device=targets_B.device),
        )

    def targets(self, seen: Seen) -> Tensor:
        """Index of each row's answer, -100 where the vocabulary lacks it."""
        index = {answer: position for position, answer in enumerate(self.answers)}
        found = [index.get(str(fields.get("answer")), -100) for fields in seen.view.batch.fields]
        return torch.tensor(found, device=seen.pooled_BD.device)
