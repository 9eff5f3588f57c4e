"""What an objective is that writes captions: it also tells the next word of a text that goes on.

B rows, S sequences, T tokens, V words.
"""

from collections.abc import Callable

from torch import Tensor

from ..data.batch import Batch
from .objective import Objective
from .task import Task

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
