"""Packing: only real tokens go through a transformer; padding is laid out for attention alone.

All that a layer does to a token by itself (projections, perceptron, norms: nearly all of its work)
is done on one flat run of tokens. For attention the tokens of some rows stand in one bin, of the
length of the longest row at most, and see their own row's. What a row gives is what it gives when
padded, to rounding.

B rows, X places of a row on one side (words, or regions), T tokens on all sides, K bins, C slots of
a bin, Q queries, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batch import Batch
from .model import Model
from .objective import Seen


class Side:
    """The real tokens of one side of the rows, row by row."""

    def __init__(self, real_BX: Tensor) -> None:
        self.rows, self.places = real_BX.shape
        self.row_T, self.place_T = real_BX.nonzero().unbind(1)
        self.full = len(self.row_T) == self.rows * self.places
        self._at_T = self.row_T * self.places + self.place_T
        self.length_B = real_BX.sum(1)
        self.nth_T = (real_BX.long().cumsum(1) - 1)[self.row_T, self.place_T]
        """Which of its row's real tokens each is."""

    def take(self, x_BXD: Tensor) -> Tensor:
        """The real ones of a padded side, (1, T, D)."""
        flat = x_BXD.flatten(0, 1)
        return (flat if self.full else flat.index_select(0, self._at_T))[None]

    def put(self, x_1TD: Tensor) -> Tensor:
        """The padded side (B, X, D), zeros where nothing real stands."""
        if not self.full:
            blank = x_1TD.new_zeros(self.rows * self.places, x_1TD.shape[2])
            x_1TD = blank.index_copy(0, self._at_T, x_1TD[0])
        return x_1TD.view(self.rows, self.places, x_1TD.shape[-1])


class Bins:
    """Where the tokens of several sides stand for attention: token t in slot `slot_T[t]`."""

    def __init__(self, sides: Sequence[Side], bin_B: Tensor, first_B: Tensor, bins: int) -> None:
        """Puts each row into its bin, from its first slot on, one side after the other.

        `first_B` counts the slots before the row in its bin.
        """
        before_B, slots = first_B, list[Tensor]()
        for side in sides:
            slots.append(before_B[side.row_T] + side.nth_T)
            before_B = before_B + side.length_B
        in_bin_T, row_T = torch.cat(slots), torch.cat([side.row_T for side in sides])
        self.bins, self.slots = bins, int(before_B.max())
        self.slot_T = bin_B[row_T] * self.slots + in_bin_T
        self.row_KC = self._spread(row_T, -1)
        self.tight = len(row_T) == bins * self.slots and bins == len(bin_B)
        """Whether each bin is one row, and no slot is empty."""

    def _spread(self, value_T: Tensor, empty: int) -> Tensor:
        blank = value_T.new_full((self.bins * self.slots,), empty)
        return blank.index_copy(0, self.slot_T, value_T).view(self.bins, self.slots)

    def ranks(self, rank_T: Tensor) -> Tensor:
        """(K, C), 0 in empty slots."""
        return self._spread(rank_T, 0)

    def fill(self, x_1TD: Tensor) -> Tensor:
        """(K, C, D), zeros in empty slots."""
        return _Fill.apply(x_1TD[0], self.slot_T, self.bins, self.slots)  # pyright: ignore

    def empty(self, x_KCD: Tensor) -> Tensor:
        """(1, T, D) again."""
        return _Empty.apply(x_KCD, self.slot_T)[None]  # pyright: ignore


class _Fill(torch.autograd.Function):
    """No two tokens share a slot, so both ways are plain copies."""

    @staticmethod
    def forward(ctx, x_TD, slot_T, bins, slots):  # pyright: ignore
        ctx.save_for_backward(slot_T)
        blank = x_TD.new_zeros(bins * slots, x_TD.shape[1])
        return blank.index_copy_(0, slot_T, x_TD).view(bins, slots, -1)

    @staticmethod
    def backward(ctx, grad_KCD):  # pyright: ignore
        (slot_T,) = ctx.saved_tensors
        return grad_KCD.flatten(0, 1).index_select(0, slot_T), None, None, None


class _Empty(torch.autograd.Function):
    """The way back; see `_Fill`."""

    @staticmethod
    def forward(ctx, x_KCD, slot_T):  # pyright: ignore
        ctx.save_for_backward(slot_T)
        ctx.shape = x_KCD.shape
        return x_KCD.flatten(0, 1).index_select(0, slot_T)

    @staticmethod
    def backward(ctx, grad_TD):  # pyright: ignore
        (slot_T,) = ctx.saved_tensors
        bins, slots, width = ctx.shape
        blank = grad_TD.new_zeros(bins * slots, width)
        return blank.index_copy_(0, slot_T, grad_TD).view(bins, slots, width), None


@dataclass(frozen=True)
class Reach:
    """Who sees whom among packed tokens; it stands where a mask of padded ones does."""

    queries: Bins
    keys: Bins
    mask: Tensor | None
    """bool (K, 1, Q, C); None where all of a bin may see each other."""


def reach(
    queries: Bins, keys: Bins, query_rank_T: Tensor | None = None, key_rank_T: Tensor | None = None
) -> Reach:
    """Tokens see those of their own row, and with ranks only those of their own rank or a lower.

    A text that is read from left to right has the ranks 0, 1, 2, ...; see `attend.py`.
    """
    if query_rank_T is None and queries.tight and keys.tight:
        return Reach(queries, keys, None)
    query_KQ1, key_K1C = queries.row_KC[:, :, None], keys.row_KC[:, None, :]
    mask_KQC = (query_KQ1 == key_K1C) & (key_K1C >= 0)
    if query_rank_T is not None and key_rank_T is not None:
        mask_KQC &= keys.ranks(key_rank_T)[:, None, :] <= queries.ranks(query_rank_T)[:, :, None]
    return Reach(queries, keys, (mask_KQC | (query_KQ1 < 0))[:, None])  # an empty slot asks anyone


def bins_of(*sides: Sequence[Side]) -> list[Bins]:
    """For each group of sides its bins, with every row in the bin of the same number.

    First fit, longest row first; a bin is as long as the longest row of its group.
    """
    lengths_BG = torch.stack(
        [torch.stack([side.length_B for side in group]).sum(0) for group in sides], dim=1
    )
    bin_B, first_BG, bins = _first_fit(lengths_BG.tolist())
    device = lengths_BG.device
    where_B, before_BG = torch.tensor(bin_B, device=device), torch.tensor(first_BG, device=device)
    return [Bins(group, where_B, before_BG[:, n], bins) for n, group in enumerate(sides)]


def _first_fit(lengths_BG: list[list[int]]) -> tuple[list[int], list[list[int]], int]:
    """(bin of each row, slots before it there, number of bins)."""
    groups = range(len(lengths_BG[0]))
    most = [max(lengths[g] for lengths in lengths_BG) for g in groups]
    used, bin_B, first_BG = list[list[int]](), [0] * len(lengths_BG), list[list[int]]()
    first_BG = [[0] * len(most) for _ in lengths_BG]
    for row in sorted(range(len(lengths_BG)), key=lambda row: -sum(lengths_BG[row])):
        wants = lengths_BG[row]
        fits = (n for n, u in enumerate(used) if all(u[g] + wants[g] <= most[g] for g in groups))
        where = next(fits, len(used))
        if where == len(used):
            used.append([0] * len(most))
        bin_B[row], first_BG[row] = where, used[where]
        used[where] = [used[where][g] + wants[g] for g in groups]
    return bin_B, first_BG, len(used)


def causal_ranks(side: Side, causal_B: Tensor | None, regions: Side | None) -> Tensor | None:
    """Ranks of the tokens of a text, then of the regions with it; None where no row is causal.

    A region has a lower rank than any word of such a text: it sees regions alone, and all see it.
    """
    if causal_B is None:
        return None
    words_T = torch.where(causal_B[side.row_T], side.place_T, 0)
    if regions is None:
        return words_T
    return torch.cat([words_T, -causal_B[regions.row_T].long()])


def useful(model: Model, batch: Batch) -> tuple[int, int]:
    """(real words and regions of a batch, places that it pads them to)."""
    real_BL = batch.real_BL if batch.hole_B is None else batch.real_BL & ~batch.hole_B[:, None]
    rows, words = batch.rows, int(real_BL.sum())
    if model.gives is not Seen:
        return words, batch.real_BL.numel()
    found = model.look(batch.arrays)
    holes = 0 if batch.hole_B is None else int(batch.hole_B.sum())
    regions = (rows - holes) * model.regions
    if found is not None:
        low_BN2, high_BN2 = found[1][..., :2], found[1][..., 2:]
        regions = int((high_BN2 > low_BN2).all(2).sum())
    return words + regions, batch.real_BL.numel() + rows * model.regions
