"""What an objective is: it may hide part of a batch, and it scores what the model saw.

B rows, L tokens, N regions, D width, C classes, E width of the space that both sides share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Part
from ..data.batch import Batch
from ..errors import RecipeError
from .diffusion.sampling import Ask, Normals, Pull, Sampling
from .frozen import Frozen
from .reader import States


class Asked(NamedTuple):
    """What a U-Net is asked, as those that add to it from outside see it."""

    x_BChw: Tensor
    """Noised latents."""
    time_B: Tensor
    context_BLD: Tensor
    """States of the text."""
    real_BL: Tensor | None
    classes_B: Tensor | None = None
    """Of denoisers that are told classes."""
    added: Mapping[str, Tensor] | None = None
    """Pooled text and place of denoisers with `placed`, as diffusers' `added_cond_kwargs`."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the model is shown of a batch, after each objective hid its part."""

    batch: Batch
    image_BCHW: Tensor
    """float pixels, normalised."""
    tokens_BL: Tensor
    real_BL: Tensor
    hidden_BN: Tensor
    """bool, True for regions whose pixels or features were taken away."""
    matched_B: Tensor
    """bool, True where the text belongs to the image; in a hole nothing does."""
    causal_B: Tensor | None = None
    """bool, True for rows whose text is read from left to right, each word seeing those before it
    and the image, the image never the text. None where there are none."""
    features_BNF: Tensor | None = None
    """Of regions that were found beforehand; None where the model looks at the pixels."""
    boxes_BN4: Tensor | None = None
    """Left, top, right and bottom of each such region as shares of the image's sides. One without
    an area is no region."""
    targets: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What each objective hid, under its kind."""
    contexts: tuple[States, ...] = ()
    """What frozen encoders say of the texts, where the model has any."""
    classes_B: Tensor | None = None
    """Number of each row's class, for models that are told it."""
    time_B: Tensor | None = None
    """How noised the image is, from 0 to 1000; None where no objective adds noise."""
    steer: Callable[[Asked], Mapping[str, Any]] | None = None
    """What is added inside a U-Net, as arguments of diffusers' own; see `control`."""


def real_regions(view: View) -> Tensor | None:
    """bool (B, N), False for rows of `boxes_BN4` that only fill up; None where all are regions."""
    if view.boxes_BN4 is None:
        return None
    left_BN, top_BN, right_BN, bottom_BN = view.boxes_BN4.unbind(2)
    return (right_BN > left_BN) & (bottom_BN > top_BN)


def read_whole(view: View) -> Tensor:
    """bool (B,), True for rows whose states can know all of the text: not those that are read from
    left to right, whose image and first word see none of it."""
    return torch.ones_like(view.matched_B) if view.causal_B is None else ~view.causal_B


def answerable(view: View) -> Tensor:
    """bool (B,), True for rows that can be asked about their own text: it was not exchanged, and
    is read whole."""
    return view.matched_B & read_whole(view)


class Towers(NamedTuple):
    """What the model made of each side before the two met."""

    text_BE: Tensor
    """Unit vectors."""
    image_BE: Tensor
    """Unit vectors."""
    pair: Callable[[Tensor], Tensor]
    """Row numbers (B,) -> the pair's state (B, D) of each image with the text of that row."""


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
    towers: Towers | None = None
    """None where the model mixes words and regions from its first layer on."""


class Classified(NamedTuple):
    """What a classifier of noised images says of a view."""

    view: View
    logits_BC: Tensor


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
    """Values of one region: of its pixels, height x width x channels, or of its features; 0 where
    a region is neither a cell of a square grid nor found beforehand."""
    epsilon: float = 1e-5
    """Of layer norms."""
    shared: int = 0
    """Width of the vectors in `Seen.towers`; 0 where the model has none."""


def require_regions(kind: str, sizes: Sizes) -> None:
    """Raises RecipeError where a model has no regions for an objective to read."""
    if not sizes.regions:
        raise RecipeError(
            f"objective {kind!r} reads the regions of an image, and this model has none: 'clip' "
            "makes one vector of it, `visual: {kind: none}` sees nothing. Use model 'vlp', "
            "'single_stream' or 'two_stream' with another visual."
        )


class Objective(Part):
    """A record with a weight; a method file overrides what it needs.

    `hide` runs before the encoder pass, in the order of the recipe; `score` after it.
    """

    reads: ClassVar[type] = Seen
    """What its model must give: `Seen`, `Denoised` or `Classified`."""
    places: ClassVar[bool] = False
    """Whether it learns where in a picture something is, of shares of the picture's sides."""
    both_ways: ClassVar[bool] = False
    """Whether it learns nothing of rows that are read from left to right."""
    weight: float = 1.0

    @property
    def rows_multiple(self) -> int:
        """What the rows of a micro-batch must be a multiple of."""
        return 1

    @property
    def one_way(self) -> bool:
        """Whether it has every row read from left to right."""
        return False

    @property
    def arrays(self) -> Mapping[str, int]:
        """.npy members of a sample that it reads, a row for each region: their widths by name."""
        return {}

    def check(self, objectives: Sequence["Objective"]) -> None:
        """Raises ValueError where a run's objectives, itself among them, cannot train together."""

    def prepare(self, task: Any, batch: Batch) -> Batch:
        """The batch that a step trains on instead of this one, made by the task as it is; the same
        by default."""
        return batch

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        """Its parts with weights of their own that are never trained, by name."""
        return {}

    def head(self, sizes: Sizes) -> nn.Module:
        """The parameters that this objective alone trains; none by default."""
        return nn.Identity()

    def hide(self, view: View, words: "Words") -> View:
        """The view with this objective's part hidden; unchanged by default."""
        return view

    def logits(self, head: Any, seen: Seen) -> Tensor | None:
        """What the head says of rows with nothing hidden, (B, C); None where that means nothing."""
        return None

    def sample(
        self, ask: Ask, x_T: Tensor, how: Sampling, normal: Normals, pull: Pull | None = None
    ) -> Tensor:
        """What its model makes of noise; for objectives that noise.

        Args:
            ask: the network, guided already.
            x_T: normal numbers, (B, ...).
            how: steps and the rest.
            normal: (name of a step) -> more normal numbers of the shape of x_T.
            pull: a classifier's gradient, its scale included.

        Raises:
            RecipeError: it does not sample so.
        """
        raise RecipeError(f"objective {self.kind!r} draws no images; name a ddpm or flow run.")

    def invert(self, ask: Ask, x0: Tensor, how: Sampling, refine: int = 0) -> Tensor:
        """The noise of which `sample`, told the same, makes about x0; for objectives that noise.

        Args:
            ask: the network, guided already.
            x0: images or latents, (B, ...).
            how: steps and the rest.
            refine: how often each step is asked again; see `samplers.ddim_inverse`.

        Raises:
            RecipeError: such sampling cannot be inverted.
        """
        raise RecipeError(f"objective {self.kind!r} draws no images; name a ddpm or flow run.")

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
    joined: tuple[int, ...] | None = ()
    """Ids of pieces that go on with the word before them; None where pieces do not say so."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Ids -> their text."""
