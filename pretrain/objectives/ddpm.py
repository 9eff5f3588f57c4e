"""Denoising diffusion (Ho et al. 2020): the lecture's Algorithm 1, Training.

B rows, C channels, H x W pixels.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from ...data.draws import normal, uniform
from ..diffusion.inverting import invert_ddpm
from ..diffusion.rows import draw_noise, drop_text, score_denoised
from ..diffusion.sampling import Ask, Normals, Pull, Sampling, draw_ddpm
from ..diffusion.schedules import Schedule, snr
from ..diffusion.targets import Predict, add_noise, perturbed, target
from ..diffusion.weights import WEIGHTS, Weighting
from ..objective import Denoised, Objective, Score, View, Words


class DenoisingDiffusion(Objective):
    """L = weight(t) ||target - f(sqrt(alphas_bar) x_0 + sqrt(1 - alphas_bar) noise, t, text)||^2.

    Timestep, noise and dropped captions are keyed by the row. Beside the loss, the error without
    its weight is reported for each quarter of the timesteps, `mse.0` the cleanest.
    """

    kind: ClassVar[str] = "ddpm"
    reads: ClassVar[type] = Denoised
    schedule: Schedule = Schedule()
    predict: Predict = "epsilon"
    """What the network says: the noise, v, or the image."""
    weighting: Weighting = "none"
    times: Literal["uniform", "cubic"] = "uniform"
    """How timesteps are drawn. `cubic` prefers noise, where the layout is settled: t = (1 - u^3) T
    (T2I-Adapter, Mou et al. 2024, eq. 8)."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """Share of the captions that are dropped, for classifier-free guidance."""
    noise_offset: float = Field(default=0.0, ge=0)
    perturbation: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _sound(self) -> "DenoisingDiffusion":
        if self.schedule.zero_terminal_snr and self.predict == "epsilon":
            raise ValueError(
                "schedule.zero_terminal_snr has a timestep of noise alone, of which an epsilon "
                "tells nothing; set predict=v"
            )
        return self

    def hide(self, view: View, words: Words) -> View:
        draws_B, image_BCHW = view.batch.draws_B, view.image_BCHW
        steps = self.schedule.steps
        share_B = uniform(draws_B, "ddpm.time", 1)[:, 0]
        if self.times == "cubic":
            share_B = 1 - share_B**3
        t_B = (share_B * steps).long().clamp(max=steps - 1)
        a_B = self.schedule.alphas_bar().to(t_B.device)[t_B]
        noise = draw_noise(view, self.kind, self.noise_offset)
        put_in = noise
        if self.perturbation:
            other = normal(draws_B, "ddpm.perturbation", noise[0].numel()).to(noise.dtype)
            put_in = perturbed(noise, other.view_as(noise), self.perturbation)
        found = {
            self.kind: target(self.predict, image_BCHW, noise, a_B),
            "ddpm.weight": WEIGHTS[self.weighting](snr(a_B), self.predict),
        }
        return replace(
            drop_text(view, words, self.kind, self.drop),
            image_BCHW=add_noise(image_BCHW, put_in, a_B),
            time_B=t_B * (1000 / steps),
            targets={**view.targets, **found},
        )

    def sample(
        self, ask: Ask, x_T: Tensor, how: Sampling, normal: Normals, pull: Pull | None = None
    ) -> Tensor:
        return draw_ddpm(ask, x_T, how, normal, self.schedule, self.predict, pull)

    def invert(self, ask: Ask, x0: Tensor, how: Sampling, refine: int = 0) -> Tensor:
        return invert_ddpm(ask, x0, how, self.schedule, self.predict, refine)

    def score(self, head: Any, seen: Denoised) -> Score:
        return score_denoised(
            seen, seen.view.targets[self.kind], seen.view.targets["ddpm.weight"].float()
        )
