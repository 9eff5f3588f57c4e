"""Which class is a noised image of? What classifier guidance is trained by (lecture, Algorithm 1).

B rows, K classes.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from ...data.draws import uniform
from ..diffusion.rows import bucket, draw_noise
from ..diffusion.schedules import Schedule
from ..diffusion.targets import add_noise
from ..objective import Classified, Objective, Score, View, Words


class NoisedClass(Objective):
    """L = -log p(y | sqrt(alphas_bar) x_0 + sqrt(1 - alphas_bar) noise, t), t uniform.

    Timestep and noise are keyed by the row. The schedule must be that of the denoiser to guide.
    Loss and accuracy are reported for each quarter of the timesteps, `.0` the cleanest.
    """

    kind: ClassVar[str] = "noised_class"
    reads: ClassVar[type] = Classified
    schedule: Schedule = Schedule()

    def hide(self, view: View, words: Words) -> View:
        steps = self.schedule.steps
        share_B = uniform(view.batch.draws_B, "noised_class.time", 1)[:, 0]
        t_B = (share_B * steps).long().clamp(max=steps - 1)
        a_B = self.schedule.alphas_bar().to(t_B.device)[t_B]
        noise = draw_noise(view, self.kind)
        return replace(
            view,
            image_BCHW=add_noise(view.image_BCHW, noise, a_B),
            time_B=t_B * (1000 / steps),
        )

    def score(self, head: Any, seen: Classified) -> Score:
        classes_B, time_B = seen.view.classes_B, seen.view.time_B
        assert classes_B is not None and time_B is not None  # of the model, and `hide` put it there
        logits_BK = seen.logits_BC.float()
        loss_B = F.cross_entropy(logits_BK, classes_B, reduction="none")
        right_B = logits_BK.argmax(1) == classes_B
        hole_B = seen.view.batch.hole_B
        valid_B = torch.ones_like(right_B) if hole_B is None else ~hole_B
        return Score(
            loss_B=loss_B,
            valid_B=valid_B,
            hits=(right_B & valid_B).sum(),
            tries=valid_B.sum(),
            parts=bucket({"loss": loss_B, "accuracy": right_B.float()}, time_B),
        )
