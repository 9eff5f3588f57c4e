"""Images again: error, likeness, a bound on latents, and a critic that starts late.

VQGAN (Esser et al., CVPR 2021) and the KL autoencoder of latent diffusion (Rombach et al. 2022).
B rows, C channels, H x W pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..adversary import balance, pixel_error, through, wish
from ..autoencoding import Decoded
from ..critic import Critic, Way, critic_loss
from ..frozen import Frozen
from ..likeness import AnyLikeness, Looking
from ..objective import Objective, Score, Sizes

_PEAK = 4.0
"""Square of the range of pixels, [-1, 1]."""


class Reconstruction(Objective):
    """L = |x - x'| + likeness + bound - weight D(x'), and of the critic D its hinge loss.

    Both are learned at once, from the same weights; the original takes turns within a step. The
    weight is `disc_weight` times what makes both want as much of the last convolution, and there
    is no critic before `disc_start`. All is a mean over pixel values, where latent diffusion sums.
    """

    kind: ClassVar[str] = "reconstruct"
    reads: ClassVar[type] = Decoded
    error: Literal["l1", "l2"] = "l1"
    likeness: AnyLikeness | None = None
    """Frozen features to compare in: {kind: timm, network: vgg16.tv_in1k}; none by default."""
    likeness_weight: float = Field(default=1.0, ge=0)
    disc_weight: float = Field(default=0.5, ge=0)
    """0: no critic at all."""
    disc_start: int = Field(default=0, ge=0)
    """Step of the run from which on there is a critic."""
    disc_loss: Way = "hinge"
    disc_width: int = Field(default=64, ge=8, multiple_of=8)
    """Channels of the critic's first layer."""
    disc_depth: int = Field(default=3, ge=1)
    """Its layers beside the first and the last; each doubles how far a patch sees."""

    @property
    def frozen(self) -> Mapping[str, Frozen]:
        return {"likeness": self.likeness} if self.likeness else {}

    def head(self, sizes: Sizes) -> nn.Module:
        return Judges(self)

    def score(self, head: Any, seen: Decoded) -> Score:
        image_BCHW, said_BCHW = seen.view.image_BCHW.float(), seen.said_BCHW.float()
        copy_BCHW = said_BCHW.detach().requires_grad_(torch.is_grad_enabled())
        error_B = pixel_error(self.error, copy_BCHW, image_BCHW)
        far_B = head.apart(copy_BCHW, image_BCHW)
        whole_B = error_B + self.likeness_weight * far_B
        bound_B = seen.share * seen.bound_B
        mse_B = (copy_BCHW.detach() - image_BCHW).pow(2).flatten(1).mean(1)
        all_B = seen.view.matched_B
        told = {"error": error_B, "bound": seen.bound_B, "psnr": _psnr(mse_B)}
        told |= {"likeness": far_B} if self.likeness else {}
        hits = tries = torch.zeros((), device=image_BCHW.device, dtype=torch.long)
        if not torch.is_grad_enabled():
            loss_B = whole_B + bound_B
        else:
            wish_BCHW = wish(whole_B, copy_BCHW, again=False)
            loss_B = through(whole_B, wish_BCHW, said_BCHW) + bound_B
            if self._judged(seen):
                more_B, more, hits, tries = self._judge(head, seen, copy_BCHW, wish_BCHW)
                loss_B, told = loss_B + more_B, {**told, **more}
        parts = {name: (value_B.detach(), all_B) for name, value_B in told.items()}
        return Score(loss_B=loss_B, valid_B=all_B, hits=hits, tries=tries, parts=parts)

    def _judged(self, seen: Decoded) -> bool:
        step = seen.view.batch.step
        return self.disc_weight > 0 and (step is None or step >= self.disc_start)

    def _judge(
        self, head: Any, seen: Decoded, copy_BCHW: Tensor, wish_BCHW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """(what is added to each row's loss, what is told, patches judged right, patches)."""
        image_BCHW, holes_B = seen.view.image_BCHW, seen.view.batch.hole_B
        real, fake = head.critic(image_BCHW), head.critic(copy_BCHW.to(image_BCHW.dtype))
        verdict_B = -fake.float().flatten(1).mean(1)
        verdict_BCHW = wish(verdict_B, copy_BCHW, again=True).float()
        if holes_B is not None:
            counts = (~holes_B)[:, None, None, None]
            wish_BCHW, verdict_BCHW = wish_BCHW * counts, verdict_BCHW * counts
        weight = balance(wish_BCHW, verdict_BCHW, seen.last_BCHW)
        cost_B = critic_loss(self.disc_loss, real, fake)
        fooling_B = through(verdict_B, verdict_BCHW, seen.said_BCHW)
        more_B = self.disc_weight * weight * fooling_B + cost_B
        told = {"verdict": verdict_B, "critic": cost_B, "balance": weight.expand_as(cost_B)}
        there_B = seen.view.batch.present_B
        real, fake = real[there_B], fake[there_B]
        hits = (real > 0).sum() + (fake < 0).sum()
        return more_B, told, hits, torch.full_like(hits, real.numel() + fake.numel())


class Judges(nn.Module):
    """The critic, which is trained, and the frozen eye, which is no part of the module."""

    def __init__(self, spec: Reconstruction) -> None:
        super().__init__()
        if spec.disc_weight:
            self.critic = Critic(spec.disc_width, spec.disc_depth)
        self._eye = Looking(spec.likeness) if spec.likeness else None

    def apart(self, said_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
        """How far images are apart in frozen features; 0 without such, or without data."""
        if self._eye is None or image_BCHW.is_meta:
            return said_BCHW.new_zeros(len(said_BCHW))
        return self._eye.apart(said_BCHW, image_BCHW)


def _psnr(mse_B: Tensor) -> Tensor:
    """Decibels."""
    return 10 * (_PEAK / mse_B.clamp(min=1e-10)).log10()
