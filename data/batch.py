"""The one thing that crosses from data to models: a frozen batch that knows its rows by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B rows of one step: B rows, L tokens, C channels, H x W pixels.

    The key of a row travels with it, so nothing is ever matched by position.
    """

    keys: tuple[str, ...]
    """`shard/key` of each row, as the ledger prints it."""
    draws_B: Tensor
    """int64 random key of each row, from (seed, epoch, key); see `draws.uniform`."""
    image_BCHW: Tensor
    """uint8 pixels; normalised on the device, where it is free."""
    tokens_BL: Tensor
    """int64 token ids, padded."""
    real_BL: Tensor
    """bool, True where `tokens_BL` holds a token of the text."""
    fields: tuple[Mapping[str, Any], ...]
    """The sample's own JSON record: question, answer, whatever the shard carried."""
    texts: tuple[str, ...] = ()
    """What `tokens_BL` was made of, for encoders that have words of their own."""
    hole_B: Tensor | None = None
    """bool, True for rows that were left out (see `holes.py`): they keep their place and train
    nothing. None where there are none."""
    arrays: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the recipe asked for of the sample's .npy members, (B, N, F) float32 by name, filled up
    with zeros to N; and of caches that were joined, `latent` (B, C, h, w) and the like: see
    `join.stacked`."""
    source_B: Tensor | None = None
    """int64, which source each row is of; None where all rows count alike in the loss."""
    weight_B: Tensor | None = None
    """float32, what each row's loss is multiplied by, so that the mean over rows is the sum over
    sources of what each counts times the mean over its own rows."""
    hints: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Pictures beside the picture, (B, C, H, W) uint8 by name, cut and flipped like it; zeros for
    rows that were left out."""
    placed_B6: Tensor | None = None
    """float32, where each row was cut from, in pixels: height and width of the whole picture, what
    was cut off above and at the left, height and width of the row; zeros for rows that were left
    out. None where the recipe does not ask."""

    step: int | None = None
    """The step that it trains, counted from 0; None for one that trains nothing."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.keys)

    @property
    def present_B(self) -> Tensor:
        """bool, True for rows that are no holes."""
        if self.hole_B is None:
            return torch.ones_like(self.draws_B, dtype=torch.bool)
        return ~self.hole_B

    def present(self) -> "Batch":
        """The rows that are no holes."""
        if self.hole_B is None:
            return self
        return replace(self.pick(self.present_B.nonzero()[:, 0]), hole_B=None)

    def take(self, first: int, last: int) -> "Batch":
        """Rows [first, last)."""
        part = self._map(lambda tensor: tensor[first:last])
        keys, fields = self.keys[first:last], self.fields[first:last]
        return replace(part, keys=keys, fields=fields, texts=self.texts[first:last])

    def pick(self, row_S: Tensor) -> "Batch":
        """Rows by number, in any order and as often as they are named."""
        part = self._map(lambda tensor: tensor[row_S.to(tensor.device)])
        rows = row_S.tolist()
        keys, fields = (tuple(each[row] for row in rows) for each in (self.keys, self.fields))
        texts = tuple(self.texts[row] for row in rows) if self.texts else ()
        return replace(part, keys=keys, fields=fields, texts=texts)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`; copies overlap with compute when the source is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies by itself."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Any) -> "Batch":
        return replace(
            self,
            draws_B=move(self.draws_B),
            image_BCHW=move(self.image_BCHW),
            tokens_BL=move(self.tokens_BL),
            real_BL=move(self.real_BL),
            hole_B=None if self.hole_B is None else move(self.hole_B),
            source_B=None if self.source_B is None else move(self.source_B),
            weight_B=None if self.weight_B is None else move(self.weight_B),
            placed_B6=None if self.placed_B6 is None else move(self.placed_B6),
            arrays={name: move(array) for name, array in self.arrays.items()},
            hints={name: move(hint) for name, hint in self.hints.items()},
        )


def joined(parts: Sequence[Batch]) -> Batch:
    """Batches of one recipe as one, row after row.

    Raises:
        DataError: there are none.
    """
    if not parts:
        raise DataError("No sample is left: all were left out, or the dataset is empty.")
    placed = [part.placed_B6 for part in parts if part.placed_B6 is not None]
    holes = [torch.zeros(p.rows, dtype=torch.bool) if p.hole_B is None else p.hole_B for p in parts]
    return Batch(
        keys=tuple(key for part in parts for key in part.keys),
        draws_B=torch.cat([part.draws_B for part in parts]),
        image_BCHW=torch.cat([part.image_BCHW for part in parts]),
        tokens_BL=torch.cat([part.tokens_BL for part in parts]),
        real_BL=torch.cat([part.real_BL for part in parts]),
        fields=tuple(field for part in parts for field in part.fields),
        hole_B=torch.cat(holes),
        placed_B6=torch.cat(placed) if placed else None,
        arrays={n: torch.cat([part.arrays[n] for part in parts]) for n in parts[0].arrays},
        hints={n: torch.cat([part.hints[n] for part in parts]) for n in parts[0].hints},
    )
