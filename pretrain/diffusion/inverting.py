"""From images to the noise that they are drawn from: DDIM's inversion, and that of Euler's steps.

B rows; x of shape (B, ...).
"""

from itertools import pairwise

import torch
from torch import Tensor

from ...errors import RecipeError
from . import samplers
from .samplers import Denoiser
from .sampling import Ask, Sampling, flow_line, timesteps
from .schedules import Schedule
from .targets import Predict


def invert_ddpm(
    ask: Ask, x0: Tensor, how: Sampling, schedule: Schedule, predict: Predict, refine: int = 0
) -> Tensor:
    """The noise of which DDIM with eta 0 and the same steps makes about x0.

    Raises:
        RecipeError: another sampler, one that draws between its steps, or clipped images.
    """
    _require(how, "ddim")
    taken, final = timesteps(how, schedule)
    if predict == "x0" and final == 1:
        raise RecipeError(
            "a model that predicts x0 says nothing of the noise of a clean image, where "
            f"{how.spacing or 'trailing'} timesteps end. Say --spacing leading."
        )
    total = schedule.steps

    def model(x: Tensor, rows_B: Tensor) -> Tensor:
        return ask(x, rows_B * (1000 / total))

    denoiser = Denoiser(model, schedule.alphas_bar(), predict)
    return samplers.ddim_inverse(denoiser, x0, taken, final=final, refine=refine)


def invert_flow(ask: Ask, x0: Tensor, how: Sampling, shift: float, refine: int = 0) -> Tensor:
    """The noise of which Euler's steps along the same line make about x0.

    As DDIM's inversion: the velocity at the nearer end of a step, told the time of the farther.

    Raises:
        RecipeError: as `invert_ddpm`.
    """
    _require(how, "euler")

    def speed(x: Tensor, s: float) -> Tensor:
        return ask(x, torch.full((len(x),), s * 1000, device=x.device))

    x = x0
    for s, s_next in reversed(list(pairwise(flow_line(how.steps, shift)))):
        nearer = x
        for _ in range(1 + refine):
            x = nearer + (s - s_next) * speed(x, s)
    return x


def _require(how: Sampling, sampler: str) -> None:
    if how.sampler not in (None, sampler):
        raise RecipeError(
            f"sampler {how.sampler!r} is not inverted here; {sampler} is, for this model."
        )
    if how.eta:
        raise RecipeError(f"eta {how.eta} draws noise between the steps; inversion needs eta 0.")
    if how.limit:
        raise RecipeError("clipped images cannot be inverted; leave threshold and clip.")
