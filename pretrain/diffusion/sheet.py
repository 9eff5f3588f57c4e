"""The pictures that a run draws of itself while it trains: the same prompts, the same noise."""

from pydantic import Field, model_validator

from ...config import Record
from .sampling import Sampling


class Sheet(Record):
    """What is on each sheet: one row a prompt."""

    prompts: tuple[str, ...] = ()
    """By default the first eight of the model's classes."""
    n: int = Field(default=4, ge=1)
    """Images of each prompt."""
    how: Sampling = Sampling(steps=25)

    @model_validator(mode="after")
    def _small(self) -> "Sheet":
        if len(self.prompts) * self.n > 1024:
            raise ValueError(
                f"{len(self.prompts)} prompts times n={self.n} is more than 1024 images a sheet; "
                "`diptych sample RUN --step N` draws any number from a checkpoint"
            )
        return self

    def wanted(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The prompts, of a model that knows such classes."""
        return self.prompts or classes[:8]


def due(every: int | None, done: int, steps: int) -> bool:
    """Whether a sheet is drawn once `done` steps are: after every so many, and at the end."""
    return every is not None and (done % every == 0 or done == steps)
