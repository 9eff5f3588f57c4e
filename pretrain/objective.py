"""What an objective is: it may hide part of a batch, and it scores what the model saw.

B rows, L tokens, N regions, D width, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..config import Part
from ..data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class View:
    """What the model is shown of a batch, after each objective hid its part."""

    batch: Batch
    image_BCHW: Tensor
    """float pixels, normalised."""
    tokens_BL: Tensor
    real_BL: Tensor
    hidden_BN: Tensor
    """bool, True for regions whose pixels were taken away."""
    matched_B: Tensor
    """bool, True where the text belongs to the image."""
    targets: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What each objective hid, under its kind."""
    time_B: Tensor | None = None
    """How noised the image is, from 0 to 1000; None where no objective adds noise."""


class Seen(NamedTuple):
    """One encoder pass over a view; every objective reads the same one.

    A tuple, since what a module returns must be one for ZeRO-3 to find the tensors in it.
    """

    view: View
    tokens_BLD: Tensor
    regions_BND: Tensor
    pooled_BD: Tensor
    word_weights_VD: Tensor
    """The word embeddings, for objectives that predict words."""


class Denoised(NamedTuple):
    """What a denoiser says of a view whose image is noised."""

    view: View
    said_BCHW: Tensor
    """Noise, velocity or image: what the objective makes of it."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """An objective's verdict per row, so that a sum over any slicing of the rows is the same."""

    loss_B: Tensor
    """Loss of each row; rows without a target hold 0."""
    valid_B: Tensor
    """bool, True for rows that had a target."""
    hits: Tensor
    """Number of right predictions, 0-d."""
    tries: Tensor
    """Number of predictions, 0-d."""
    parts: Mapping[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict[str, tuple[Tensor, Tensor]]
    )
    """More to report: name -> (value of each row, bool, True for rows that count)."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What an objective's head must fit."""

    width: int
    vocabulary: int
    regions: int = 0
    region_values: int = 0
    """Pixel values of one region: height x width x channels."""


class Objective(Part):
    """A record with a weight; a method file overrides what it needs.

    `hide` runs before the encoder pass, in the order of the recipe; `score` after it.
    """

    reads: ClassVar[type] = Seen
    """What its model must give: `Seen`, or `Denoised`."""
    weight: float = 1.0

    @property
    def rows_multiple(self) -> int:
        """What the rows of a micro-batch must be a multiple of."""
        return 1

    def head(self, sizes: Sizes) -> nn.Module:
        """The parameters that this objective alone trains; none by default."""
        return nn.Identity()

    def hide(self, view: View, words: "Words") -> View:
        """The view with this objective's part hidden; unchanged by default."""
        return view

    def logits(self, head: Any, seen: Seen) -> Tensor | None:
        """What the head says of rows with nothing hidden, (B, C); None where that means nothing."""
        return None

    def score(self, head: Any, seen: Any) -> Score:
        """Loss and hits of each row; `seen` is of the type that it reads."""
        raise NotImplementedError(f"objective {self.kind!r} has no score")


@dataclass(frozen=True, kw_only=True)
class Words:
    """Ids of the tokenizer that objectives need."""

    size: int
    """Ids in the vocabulary."""
    mask: int
    special: tuple[int, ...]
    """Ids that stand for no word and are never hidden."""
    empty: tuple[int, ...]
    """Ids of the empty text: what is left of a caption that is dropped."""
