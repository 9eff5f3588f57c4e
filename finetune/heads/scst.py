"""Self-critical sequence training: a captioner's own samples, rewarded beside its greedy captions.

Rennie et al., CVPR 2017. B rows, T tokens.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import field_validator

from ...data import storage
from ...data.batch import Batch
from ...pretrain.objective import Objective, Score, Seen
from ...pretrain.task import Task
from ...pretrain.writer import Writer
from ..scst import critical, weights_at


class SelfCritical(Objective):
    """L = -(r(sampled) - r(greedy)) log p(sampled | image), r = CIDEr-D, beside one objective that
    writes: `objectives: [{kind: scst, table: ...}, {kind: attend_tell}]`.

    It has no loss of its own: each training step it replaces the texts by samples of the writer,
    which learns them by what they are worth; `scst.sampled` and `scst.greedy` are the rewards,
    0 to 10. In evaluation texts stay what they are. Begin with a writer that was trained on texts
    (`start_from`), with no dropout and, of `attend_tell`, no penalty.
    """

    kind: ClassVar[str] = "scst"
    table: str
    """What `diptych data ngrams` wrote of the training captions: in how many images' captions an
    n-gram occurs."""
    references: str | None = None
    """Field of the record with the list of an image's captions; by default the row's own text."""

    @field_validator("table")
    @classmethod
    def _place(cls, url: str) -> str:
        return storage.absolute(url)

    def check(self, objectives: Sequence[Objective]) -> None:
        others = [each for each in objectives if each is not self]
        if len(others) != 1 or not isinstance(others[0], Writer):
            raise ValueError(
                "scst trains one objective that writes and nothing beside it, such as "
                "[{kind: scst, table: ...}, {kind: prefix}]; the others are "
                f"{[each.kind for each in others]}"
            )

    def prepare(self, task: Task, batch: Batch) -> Batch:
        if batch.step is None or batch.tokens_BL.is_meta:  # evaluation, and `plan`
            return batch
        [writer] = [each for each in task.objectives if isinstance(each, Writer)]
        return critical(task, writer, batch, weights_at(self.table), self.references)

    def score(self, head: Any, seen: Seen) -> Score:
        arrays, none_B = seen.view.batch.arrays, torch.zeros_like(seen.pooled_BD[:, 0])
        valid_B = torch.ones_like(none_B, dtype=torch.bool)
        names = ("sampled", "greedy")
        parts = {n: (arrays[f"scst.{n}"], valid_B) for n in names if f"scst.{n}" in arrays}
        count = torch.zeros((), dtype=torch.long, device=none_B.device)
        return Score(
            loss_B=none_B.float(), valid_B=valid_B, hits=count, tries=count.clone(), parts=parts
        )
