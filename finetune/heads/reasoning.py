"""Is a statement about a picture true? (NLVR, Suhr et al. 2017; NLVR2, 2019.)

B rows, D width. A sample of two images is one picture, the two side by side, as NLVR draws them:
`diptych.finetune.heads.reasoning.beside` makes it.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ...pretrain.objective import Objective, Score, Seen, Sizes, answerable

_TRUTH = {"true": 1, "yes": 1, "1": 1, "false": 0, "no": 0, "0": 0}


class VisualReasoning(Objective):
    """L = -log p(true or false | picture, statement).

    The statement is the text of the sample, the truth a field of its JSON record: true or false,
    yes or no, 1 or 0. A row without one is not trained on, and counts as wrong.
    """

    kind: ClassVar[str] = "reasoning"
    both_ways: ClassVar[bool] = True
    field: str = "label"
    """Where the record holds the truth."""

    def head(self, sizes: Sizes) -> nn.Module:
        return nn.Sequential(
            nn.Linear(sizes.width, 2 * sizes.width),
            nn.GELU(),
            nn.LayerNorm(2 * sizes.width),
            nn.Linear(2 * sizes.width, 2),
        )

    def logits(self, head: Any, seen: Seen) -> Tensor:
        return head(seen.pooled_BD).float()

    def score(self, head: Any, seen: Seen) -> Score:
        logits_B2, truth_B = self.logits(head, seen), self.truth(seen)
        asked_B = answerable(seen.view)
        return Score(
            loss_B=F.cross_entropy(logits_B2, truth_B, reduction="none", ignore_index=-100),
            valid_B=(truth_B >= 0) & asked_B,
            hits=((logits_B2.argmax(1) == truth_B) & asked_B).sum(),
            tries=asked_B.sum(),
        )

    def truth(self, seen: Seen) -> Tensor:
        """1, 0, or -100 where the record does not say, (B,) int64."""
        given = (str(fields.get(self.field)).lower() for fields in seen.view.batch.fields)
        found = [_TRUTH.get(said, -100) for said in given]
        return torch.tensor(found, device=seen.pooled_BD.device)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images as one picture, both at the height of the lower one, the left one left."""
    height = min(left.height, right.height)
    parts = [
        image.convert("RGB").resize((max(1, round(image.width * height / image.height)), height))
        for image in (left, right)
    ]
    return Image.fromarray(np.concatenate([np.asarray(part) for part in parts], axis=1))
