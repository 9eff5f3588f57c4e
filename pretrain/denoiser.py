"""What all denoisers share: the text that steers them, beside what `staged` has."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..errors import RecipeError
from .diffusion.context import FrozenContext
from .encoder import Encoder
from .frozen import Frozen
from .hint import AnyHint
from .objective import Denoised, Sizes, View, Words
from .reader import FrozenText
from .staged import Staged


class Denoiser(Staged):
    """A record of a network that is told how noised a latent is, and of what text.

    Classes are told beside the text. A prompt that is the name of one draws its class.
    """

    gives: ClassVar[type] = Denoised
    entrance: ClassVar[str]
    """The weight (out, in, ...) that sees what `channels_in` counts first."""
    width: int = Field(default=128, ge=8)
    """Of the text states."""
    text_depth: int = Field(default=1, ge=0)
    """Blocks of the text encoder, which is trained too."""

    placed: bool = False
    """Told the size of each picture, where it was cut and the size of the row, beside a mean of the
    text states: the micro-conditioning of SDXL (Podell et al. 2024, 2.2). Samples are drawn as of a
    picture of their own size that nothing was cut from, unless you say otherwise."""
    beside: AnyHint | None = None
    """A hint whose channels stand beside the latent's, at its size: conditioning by concatenation
    (Rombach et al. 2022, 3.3). From the palette it learns super-resolution, from a layout semantic
    synthesis. It begins at 0 where the run starts from one without."""
    texts: tuple[FrozenText, ...] = ()
    """Frozen text encoders in place of its own; their states stand end to end."""

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        return {
            **super().frozen,
            **{f"text.{n}": text.encoder for n, text in enumerate(self.texts)},
        }

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        alone = self.texts if len(self.texts) == 1 else ()
        return {**super().encoders, **{text.encoder.kind: text.encoder for text in alone}}

    @property
    def channels_in(self) -> int:
        """Of what the network sees: the latent's, and those of the hint beside it."""
        return self.first_stage.channels + (self.beside.channels if self.beside else 0)

    def seen(self, view: View) -> Tensor:
        """(B, channels_in, h, w): the noised latent, and beside it the hint from -1 to 1, each cell
        the mean of its pixels.

        Raises:
            RecipeError: there is neither the hint nor a picture to draw it of.
        """
        image_BCHW, hint = view.image_BCHW, self.beside
        if hint is None:
            return image_BCHW
        hint_BCHW = view.batch.hints.get(hint.kind)
        if hint_BCHW is None:
            if not view.batch.image_BCHW.numel():
                raise RecipeError(
                    f"this model sees a {hint.kind} beside what it draws. Give it a picture: "
                    f"diptych sample RUN --control {hint.kind}=PICTURE."
                )
            hint_BCHW = hint.live(view.batch.image_BCHW)
        shares_BCHW = hint_BCHW.to(image_BCHW) / 127.5 - 1
        cells_BChw = F.interpolate(shares_BCHW, image_BCHW.shape[2:], mode="area")
        return torch.cat([image_BCHW, cells_BChw], 1)

    def frozen_context(self) -> FrozenContext:
        """What puts the states of its frozen encoders into one sequence."""
        widths, weights = zip(*((text.width, text.weight) for text in self.texts), strict=True)
        return FrozenContext(widths, weights, self.width)

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.width, vocabulary=words.size)


def read_context(module: Any, view: View) -> tuple[Tensor, Tensor]:
    """(states (B, L, D), which are real (B, L)) of what steers a denoiser with such parts."""
    if view.contexts:
        return module.context(view.contexts)
    return module.context(module.words(view.tokens_BL), view.real_BL), view.real_BL


def told_place(view: View, factor: int) -> Tensor:
    """(B, 6) of what `Denoiser.placed` is told; where a batch does not say, of whole pictures.

    Args:
        view: whose latents have `factor` pixels a side of a cell.
        factor: of the first stage.
    """
    if view.batch.placed_B6 is not None:
        return view.batch.placed_B6
    image_BCHW = view.image_BCHW
    height, width = (side * factor for side in image_BCHW.shape[2:])
    whole = torch.tensor([height, width, 0, 0, height, width], device=image_BCHW.device)
    return whole.float().expand(len(image_BCHW), -1)


def told_beside(
    context_BLD: Tensor, real_BL: Tensor | None, place_B6: Tensor | None
) -> dict[str, Tensor] | None:
    """The `added` of `Asked`: diffusers puts the numbers in waves and a pooled text beside them."""
    if place_B6 is None:
        return None
    return {"text_embeds": mean_state(context_BLD, real_BL), "time_ids": place_B6}


def mean_state(context_BLD: Tensor, real_BL: Tensor | None) -> Tensor:
    """The mean state of each row's real tokens, (B, D); of all where none only fills up."""
    if real_BL is None:
        return context_BLD.mean(1)
    share_BL = real_BL / real_BL.sum(1, keepdim=True)
    return (context_BLD * share_BL[..., None].to(context_BLD.dtype)).sum(1)


def told_classes(view: View, classes: int) -> Tensor | None:
    """Numbers of the rows' classes, `classes` for none; None where the model is not told any."""
    if not classes:
        return None
    if view.classes_B is None:
        return torch.full((len(view.image_BCHW),), classes, device=view.image_BCHW.device)
    return torch.where(view.classes_B < 0, classes, view.classes_B)
