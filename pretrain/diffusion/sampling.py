"""How images are drawn: one record of what a person may choose, and a sampler for each family.

B rows; x of shape (B, ...).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...config import Record
from ...errors import RecipeError
from . import samplers
from .guidance import classifier_guided, dynamic_threshold
from .samplers import Denoiser
from .schedules import Schedule
from .targets import Predict, flow_parts, shifted

Ask = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), how noised it is (B,), from 0 to 1000) -> what the network says."""
Pull = Callable[[Tensor, Tensor], Tensor]
"""(x, how noised it is, from 0 to 1000) -> what x is pulled by: a gradient, its scale included."""
Normals = Callable[[str], Tensor]
"""(name of a step) -> normal numbers of the shape of x, the same for a row in any batch."""
_SCHEDULERS = "or a scheduler of diffusers such as DPMSolverMultistepScheduler"


class Sampling(Record):
    """Everything that decides an image but the weights and the prompt."""

    steps: int = Field(default=50, ge=1)
    guidance_scale: float = Field(default=5.0, ge=0)
    """s of without + s (with - without); 1 is no guidance. The lecture's w is s - 1."""
    sampler: str | None = None
    """`ddim`, `ddpm`, `euler`, `heun` or the name of a scheduler of diffusers; by default `ddim`
    for diffusion and `euler` for flows."""
    eta: float = Field(default=0.0, ge=0)
    """Of DDIM: 0 draws nothing between the steps, 1 as much as DDPM."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    size: tuple[int, int] | None = None
    """(width, height) in pixels; the model's own by default."""
    negative: str = ""
    """The text to be led away from."""
    spacing: Literal["leading", "trailing", "linspace"] | None = None
    """Of diffusion's timesteps. By default CompVis' `leading`, one later, or what a scheduler of
    diffusers has; `trailing` where the last timestep is noise alone."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Dynamic thresholding at this quantile of |pixel| (Imagen: 0.995); of pixels alone."""
    clip: bool = False
    """Clip predicted images to [-1, 1] at each step; of pixels alone."""

    @model_validator(mode="after")
    def _sound(self) -> "Sampling":
        if self.size and min(self.size) < 1:
            raise ValueError(f"size {self.size} is no width and height in pixels")
        return self

    @property
    def limit(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to each predicted image."""
        ratio = self.threshold
        if ratio is not None:
            return lambda x0: dynamic_threshold(x0, ratio)
        return (lambda x0: x0.clamp(-1, 1)) if self.clip else None

    def options(self) -> dict[str, Any]:
        """What a scheduler of diffusers is to be told of this, in its own names."""
        found: dict[str, Any] = {"timestep_spacing": self.spacing} if self.spacing else {}
        if self.threshold is not None:  # at their default sample_max_value it would be clipping
            found |= {"thresholding": True, "dynamic_thresholding_ratio": self.threshold}
            return found | {"sample_max_value": math.inf}
        return found | ({"clip_sample": True} if self.clip else {})


def draw_ddpm(
    ask: Ask,
    x_T: Tensor,
    how: Sampling,
    normal: Normals,
    schedule: Schedule,
    predict: Predict,
    pull: Pull | None = None,
) -> Tensor:
    """Draws from a diffusion model.

    A pull is a classifier's gradient: it moves the mean of DDPM's steps (Dhariwal and Nichol 2021,
    algorithm 1), and the noise that any other sampler is told of (algorithm 2).

    Raises:
        RecipeError: no such sampler, or it does not go with the model.
    """
    name, total = how.sampler or "ddim", schedule.steps

    def model(x: Tensor, rows_B: Tensor) -> Tensor:
        return ask(x, rows_B * (1000 / total))

    def gradient(x: Tensor, rows_B: Tensor) -> Tensor:
        assert pull is not None
        return pull(x, rows_B * (1000 / total))

    table = schedule.alphas_bar()
    if pull and name != "ddpm":
        asked: samplers.Model = classifier_guided(model, gradient, table, predict)
    else:
        asked = model
    if name not in ("ddim", "ddpm"):
        if name in ("euler", "heun"):
            raise RecipeError(f"sampler {name!r} is for flows; name ddim, ddpm {_SCHEDULERS}.")
        made = samplers.scheduler(name, schedule, predict, **how.options())
        made_with = _generators(x_T, normal)
        return samplers.run_scheduler(
            made, asked, x_T, how.steps, generator=made_with, eta=how.eta or None
        )
    denoiser = Denoiser(asked, table, predict, limit=how.limit)
    taken, final = timesteps(how, schedule)

    def drawn(t: int) -> Tensor:
        return normal(f"step.{t}")

    if name == "ddpm":
        towards = gradient if pull else None
        return samplers.ddpm(denoiser, x_T, drawn, taken=taken, gradient=towards)
    return samplers.ddim(denoiser, x_T, taken, eta=how.eta, normal=drawn, final=final)


def timesteps(how: Sampling, schedule: Schedule) -> tuple[list[int], float]:
    """(timesteps, noise first; alphas_bar at the end): as CompVis has them, or to the very end."""
    spacing = how.spacing or ("trailing" if schedule.zero_terminal_snr else "leading")
    total = schedule.steps
    if spacing != "leading":
        return samplers.times(total, how.steps, spacing), 1.0
    last = (how.steps - 1) * (total // max(1, min(how.steps, total)))
    taken = samplers.times(total, how.steps, "leading", int(last + 1 < total))
    return taken, float(schedule.alphas_bar()[0])


def draw_flow(ask: Ask, x_T: Tensor, how: Sampling, normal: Normals, shift: float) -> Tensor:
    """Draws from a rectified flow, along dx / ds = v from s = 1 to 0.

    `euler` takes one look a step; `heun` two, the second at the step's end (Karras et al. 2022).

    Raises:
        RecipeError: no such sampler, or it does not go with the model.
    """
    name = how.sampler or "euler"
    if name in ("ddim", "ddpm"):
        raise RecipeError(f"sampler {name!r} is for diffusion; name euler, heun {_SCHEDULERS}.")
    if how.eta and name in ("euler", "heun"):
        raise RecipeError(f"sampler {name!r} draws nothing between its steps; leave eta at 0.")
    if how.spacing:
        raise RecipeError("spacing is of diffusion's timesteps; a flow has none. Leave --spacing.")
    if name not in ("euler", "heun"):
        made = samplers.flow_scheduler(name, shift, **how.options())
        made_with = _generators(x_T, normal)
        return samplers.run_scheduler(
            made, ask, x_T, how.steps, generator=made_with, eta=how.eta or None
        )
    line = flow_line(how.steps, shift)

    def speed(x: Tensor, s: float) -> Tensor:
        s_B = torch.full((len(x),), s, dtype=torch.float64, device=x.device)
        said = ask(x, (s_B * 1000).float())
        if how.limit is None:
            return said
        x0 = how.limit(flow_parts(said, x, s_B).x0)
        return (x - x0) / s if s else said

    x = x_T
    for s, s_next in pairwise(line):
        v = speed(x, s)
        ahead = x + (s_next - s) * v
        if name == "heun" and s_next:
            ahead = x + (s_next - s) * (v + speed(ahead, s_next)) / 2
        x = ahead
    return x


def flow_line(steps: int, shift: float) -> list[float]:
    """Where the steps along a rectified flow begin and end, from 1, noise, to 0."""
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def _generators(x_T: Tensor, normal: Normals) -> list[torch.Generator]:
    """One for each row, its seed drawn from the row's own numbers."""
    seeds_B = normal("generators").flatten(1)[:, 0].double()
    seeds = (seeds_B.abs() * 2**40).long().tolist()
    return [torch.Generator(x_T.device).manual_seed(seed) for seed in seeds]
