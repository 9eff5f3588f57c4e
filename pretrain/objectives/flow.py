"""Rectified flow (Liu et al. 2023), with the densities of time of SD3 (Esser et al. 2024).

B rows, C channels, H x W pixels.
"""

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from ...data.draws import uniform
from ...errors import RecipeError
from ..diffusion.inverting import invert_flow
from ..diffusion.rows import draw_noise, drop_text, score_denoised
from ..diffusion.sampling import Ask, Normals, Pull, Sampling, draw_flow
from ..diffusion.targets import Density, add_flow, flow_target, flow_times
from ..objective import Denoised, Objective, Score, View, Words


class RectifiedFlow(Objective):
    """L = ||noise - x_0 - f((1 - s) x_0 + s noise, s, text)||^2.

    Time, noise and dropped captions are keyed by the row. The error is also reported for each
    quarter of the time, `mse.0` the cleanest.
    """

    kind: ClassVar[str] = "flow"
    reads: ClassVar[type] = Denoised
    density: Density = "logit_normal"
    mean: float = 0.0
    """Of the logit of the time; above 0 prefers noise."""
    spread: float = Field(default=1.0, gt=0)
    """Standard deviation of that logit."""
    scale: float = Field(default=1.29, ge=-1, le=1.75)
    """Of density `mode`: above 0 prefers the middle."""
    shift: float = Field(default=1.0, gt=0)
    """Above 1: more noise, as larger images need."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """Share of the captions that are dropped, for classifier-free guidance."""

    def hide(self, view: View, words: Words) -> View:
        s_B = flow_times(
            uniform(view.batch.draws_B, "flow.time", 1)[:, 0],
            self.density,
            mean=self.mean,
            spread=self.spread,
            scale=self.scale,
            shift=self.shift,
        )
        noise = draw_noise(view, self.kind)
        return replace(
            drop_text(view, words, self.kind, self.drop),
            image_BCHW=add_flow(view.image_BCHW, noise, s_B),
            time_B=s_B * 1000,
            targets={**view.targets, self.kind: flow_target(view.image_BCHW, noise)},
        )

    def sample(
        self, ask: Ask, x_T: Tensor, how: Sampling, normal: Normals, pull: Pull | None = None
    ) -> Tensor:
        if pull:
            raise RecipeError(
                "a classifier of DDPM's noised images guides a ddpm run; objective 'flow' noises "
                "otherwise. Draw with --guidance-scale alone."
            )
        return draw_flow(ask, x_T, how, normal, self.shift)

    def invert(self, ask: Ask, x0: Tensor, how: Sampling, refine: int = 0) -> Tensor:
        return invert_flow(ask, x0, how, self.shift, refine)

    def score(self, head: Any, seen: Denoised) -> Score:
        return score_denoised(seen, seen.view.targets[self.kind])
