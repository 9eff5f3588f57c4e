"""What an objective is that writes captions: it also tells the next word of a text that goes on.

B rows, S sequences, T tokens, V words.
"""

from collections.abc import Callable

from torch import Tensor

from ..data.batch import Batch
from .objective import Objective, View
from .task import Task

WORTH = "writer.worth"
"""The array of a batch, (B,), that says how much each row's text is to be made likelier; without
it, all alike."""

Following = Callable[[Tensor, Tensor], Tensor]
"""(row of each sequence (S,), sequences (S, T) int64) -> logits of the token after it (S, V)."""


class Writer(Objective):
    """An objective whose head, once trained, writes a text that goes with an image."""

    def follow(self, task: Task, batch: Batch) -> Following:
        """What comes after a text of each row's image; the row's own text is not read.

        Args:
            task: the trained task that has this objective, in evaluation mode.
            batch: the images.
        """
        raise NotImplementedError(f"objective {self.kind!r} tells no next word")


def weighed(view: View, loss_B: Tensor) -> Tensor:
    """-log p of each row's text, times what the text is worth where the batch says so."""
    worth_B = view.batch.arrays.get(WORTH)
    return loss_B if worth_B is None else loss_B * worth_B.to(loss_B)
