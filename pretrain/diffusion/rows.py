"""What training by denoising does to a batch, row by row and keyed by the row.

B rows, C channels, H x W pixels, L tokens.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.draws import normal, uniform
from ..objective import Denoised, Score, View, Words
from .targets import offset

_BUCKETS = 4


def draw_noise(view: View, purpose: str, offset_strength: float = 0.0) -> Tensor:
    """Normal numbers of the shape of the image; with a noise offset where there is a strength."""
    image_BCHW, draws_B = view.image_BCHW, view.batch.draws_B
    drawn = normal(draws_B, f"{purpose}.noise", image_BCHW[0].numel())
    noise = drawn.to(image_BCHW.dtype).view_as(image_BCHW)
    if offset_strength:
        lift_BC = normal(draws_B, f"{purpose}.offset", image_BCHW.shape[1])
        noise = offset(noise, lift_BC, offset_strength)
    return noise


def drop_text(view: View, words: Words, purpose: str, share: float) -> View:
    """The view with a share of the captions exchanged for the empty text.

    The model so learns both sides of classifier-free guidance (Ho and Salimans 2022).
    """
    drop_B1 = uniform(view.batch.draws_B, f"{purpose}.drop", 1) < share
    tokens_BL, real_BL = empty_text(view.tokens_BL, words)
    return replace(
        view,
        tokens_BL=torch.where(drop_B1, tokens_BL, view.tokens_BL),
        real_BL=torch.where(drop_B1, real_BL, view.real_BL),
        classes_B=_forgotten(view.classes_B, drop_B1[:, 0]),
        contexts=tuple(states.dropped(drop_B1[:, 0]) for states in view.contexts),
    )


def _forgotten(classes_B: Tensor | None, drop_B: Tensor) -> Tensor | None:
    """Class numbers with -1, which stands for none, in some rows."""
    return None if classes_B is None else torch.where(drop_B, -1, classes_B)


def empty_text(tokens_BL: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Tokens of the empty text in the shape of `tokens_BL`, and which of them are real."""
    count = len(words.empty)
    ids = torch.tensor(words.empty, dtype=tokens_BL.dtype, device=tokens_BL.device)
    empty_BL = tokens_BL.new_zeros(tokens_BL.shape)
    empty_BL[:, :count] = ids
    real_BL = torch.zeros_like(tokens_BL, dtype=torch.bool)
    real_BL[:, :count] = True
    return empty_BL, real_BL


def by_time(error_B: Tensor, time_B: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The errors apart for each quarter of the time, 0 to 1000: `mse.0`, the cleanest, to `mse.3`.

    For `Score.parts`.
    """
    return bucket({"mse": error_B}, time_B)


def bucket(values: Mapping[str, Tensor], time_B: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Values of the rows apart for each quarter of the time: `name.0`, the cleanest, to `name.3`.

    For `Score.parts`.
    """
    bucket_B = (time_B * (_BUCKETS / 1000)).long().clamp(max=_BUCKETS - 1)
    return {
        f"{name}.{number}": (value_B.detach(), bucket_B == number)
        for name, value_B in values.items()
        for number in range(_BUCKETS)
    }


def squared_error(said: Tensor, right: Tensor, mask_BHW: Tensor | None = None) -> Tensor:
    """(B,) float32: the mean over a row's values; with a mask, over what lies under it, 0 where
    nothing does."""
    error_BCHW = (said.float() - right.float()).square()
    if mask_BHW is None:
        return error_BCHW.flatten(1).mean(1)
    under_B = mask_BHW.flatten(1).mean(1)
    return (error_BCHW.mean(1) * mask_BHW).flatten(1).mean(1) / under_B.clamp(min=1e-6)


def mask(view: View) -> Tensor | None:
    """(B, h, w) in [0, 1], as large as what is noised: how much of each cell lies under the mask
    that came with the picture (`data.hints.mask`); None where none came."""
    mask_B1HW = view.batch.hints.get("mask")
    if mask_B1HW is None:
        return None
    size = view.image_BCHW.shape[2:]
    return F.interpolate(mask_B1HW.float() / 255, size=size, mode="area")[:, 0]


def score_denoised(seen: Denoised, right: Tensor, weight_B: Tensor | None = None) -> Score:
    """The squared error of each row, weighted; `parts` has it without weights, by time."""
    error_B, time_B = squared_error(seen.said_BCHW, right, mask(seen.view)), seen.view.time_B
    assert time_B is not None  # `hide` put it there
    none = torch.zeros((), dtype=torch.long, device=error_B.device)
    return Score(
        loss_B=error_B if weight_B is None else error_B * weight_B,
        valid_B=torch.ones_like(error_B, dtype=torch.bool),
        hits=none,
        tries=none,
        parts=by_time(error_B, time_B),
    )
