"""Frozen text encoders beside a task: states of texts, read live or taken from a cache.

B rows, L tokens, D width of an encoder's states.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from ..config import Record
from ..data.join import stacked
from ..errors import RecipeError
from .encoder import Encoder, Opened, picked


class States(NamedTuple):
    """What one encoder says of the texts of rows."""

    tokens_BLD: Tensor
    real_BL: Tensor
    """bool, False for states that only fill up."""
    empty_LD: Tensor
    """What it says of the empty text."""

    def dropped(self, drop_B: Tensor) -> "States":
        """The same, with the empty text's states in some rows."""
        rows, length, width = self.tokens_BLD.shape
        most = max(length, len(self.empty_LD))
        tokens_BLD = self.tokens_BLD.new_zeros((rows, most, width))
        tokens_BLD[:, :length] = self.tokens_BLD
        real_BL = self.real_BL.new_zeros((rows, most))
        real_BL[:, :length] = self.real_BL
        empty_LD = self.tokens_BLD.new_zeros((most, width))
        empty_LD[: len(self.empty_LD)] = self.empty_LD
        there_L = torch.arange(most, device=real_BL.device) < len(self.empty_LD)
        return self._replace(
            tokens_BLD=torch.where(drop_B[:, None, None], empty_LD, tokens_BLD),
            real_BL=torch.where(drop_B[:, None], there_L, real_BL),
        )


class FrozenText(Record):
    """A text encoder whose weights stay as they are."""

    encoder: Annotated[Encoder, BeforeValidator(picked)]
    """Such as {kind: text, weights: ./text_encoder}."""
    width: int = Field(ge=1)
    """Of its states."""
    weight: float = 1.0
    """Its states are multiplied by it, where there are several encoders."""

    @field_validator("encoder")
    @classmethod
    def _reads_texts(cls, encoder: Encoder) -> Encoder:
        if encoder.reads != ("text",):
            raise ValueError(f"encoder {encoder.kind!r} reads {', '.join(encoder.reads)}, not text")
        return encoder


class Reader:
    """A frozen text encoder, opened when a text is first read."""

    def __init__(self, record: FrozenText) -> None:
        self.record = record
        self._opened: Opened | None = None
        self._empty_LD: Tensor | None = None

    def read(self, texts: Sequence[str], like: Tensor) -> States:
        """States of texts, on the device and of the type of `like`.

        Raises:
            RecipeError: they are not as wide as the recipe says.
        """
        distinct = list(dict.fromkeys(texts))
        found = self._states(distinct, like.device)
        place = {text: number for number, text in enumerate(distinct)}
        rows = torch.tensor([place[text] for text in texts], device=like.device)
        tokens_BLD = found["text"].to(like)[rows]
        real_BL = found["text.real"].to(like.device)[rows]
        return States(tokens_BLD, real_BL, self.empty(like))

    def known(self, tokens_BLD: Tensor, real_BL: Tensor, like: Tensor) -> States:
        """States that a cache had; padding is cut to the longest row."""
        self._require_width(tokens_BLD)
        longest = max(1, int(real_BL.sum(1).max()))
        return States(tokens_BLD[:, :longest].to(like), real_BL[:, :longest], self.empty(like))

    def empty(self, like: Tensor) -> Tensor:
        """States (L, D) of the empty text."""
        if self._empty_LD is None:
            self._empty_LD = self._states([""], like.device)["text"][0]
        return self._empty_LD.to(like)

    def _states(self, texts: list[str], device: torch.device) -> dict[str, Tensor]:
        if self._opened is None:
            self._opened = self.record.encoder.open(str(device))
        rows = self._opened.encode(None, texts)["text"]
        found = stacked([{"text": row} for row in rows])
        self._require_width(found["text"])
        return found

    def _require_width(self, tokens_BLD: Tensor) -> None:
        if tokens_BLD.shape[2] != self.record.width:
            raise RecipeError(
                f"the encoder {self.record.encoder.kind!r} gives states of width "
                f"{tokens_BLD.shape[2]}; the recipe says {self.record.width}. Set "
                f"model.texts.0.width={tokens_BLD.shape[2]}."
            )
