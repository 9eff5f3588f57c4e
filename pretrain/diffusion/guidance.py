"""Steering a sampler: towards a text, towards a class, away from pixels that burn out.

B rows; x of shape (B, ...).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .samplers import Gradient, Model
from .targets import Predict, parts, per_row, target


def guide(with_it: Tensor, without: Tensor, w: float) -> Tensor:
    """(1 + w) with - w without: the lecture's convention (Ho and Salimans 2022); 0 is none."""
    return (1 + w) * with_it - w * without


def guide_scale(with_it: Tensor, without: Tensor, scale: float) -> Tensor:
    """without + scale (with - without): CompVis' and diffusers' convention; 1 is none.

    `guide` with w = scale - 1. The `--scale 5.0` of the lecture's command is this one: w = 4.
    """
    return without + scale * (with_it - without)


def classifier_free(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    context: Tensor,
    empty: Tensor,
    scale: float,
) -> Model:
    """A model guided towards its context, in one pass of twice the rows; scale 1 takes half of it.

    What is mixed may be epsilon, v, x0 or a velocity: each is linear in the others at one x_t.

    Args:
        model: (x_t, timesteps, context) -> what it predicts.
        context: conditions of the rows, (B, ...).
        empty: the same of no text.
        scale: of `guide_scale`.
    """
    if scale == 1:
        return lambda x, rows_B: model(x, rows_B, context)
    both = torch.cat([context, empty])

    def guided(x: Tensor, rows_B: Tensor) -> Tensor:
        said = model(torch.cat([x, x]), torch.cat([rows_B, rows_B]), both)
        with_it, without = said.chunk(2)
        return guide_scale(with_it, without, scale)

    return guided


def classifier_gradient(
    classifier: Callable[[Tensor, Tensor], Tensor], classes_B: Tensor, scale: float = 1.0
) -> Gradient:
    """s times the gradient of log p(y | x_t) to x_t, of a classifier trained on noised images.

    Args:
        classifier: (x_t, timesteps) -> logits (B, classes).
        classes_B: y of each row.
        scale: the lecture's s.
    """

    def gradient(x: Tensor, rows_B: Tensor) -> Tensor:
        with torch.enable_grad():
            seen = x.detach().requires_grad_()
            logs_BC = classifier(seen, rows_B).log_softmax(1)
            chosen = logs_BC.gather(1, classes_B[:, None]).sum()
            return scale * torch.autograd.grad(chosen, seen)[0]

    return gradient


def classifier_guided(
    model: Model, gradient: Gradient, alphas_bar_T: Tensor, predict: Predict
) -> Model:
    """A model whose noise is noise - sqrt(1 - a) gradient, for DDIM (Dhariwal and Nichol, alg. 2).

    Where x is noise alone (zero terminal SNR) nothing is pulled: no noise moves the image there.
    Ancestral sampling takes the gradient itself: `samplers.ddpm(gradient=...)`.
    """

    def guided(x: Tensor, rows_B: Tensor) -> Tensor:
        a_B = alphas_bar_T.to(x.device)[rows_B.round().long()]  # some schedulers' are between two
        said, spread = model(x, rows_B), per_row((1 - a_B).sqrt(), x)
        noise = parts(predict, said, x, a_B).noise - spread * gradient(x, rows_B)
        pulled = target(predict, parts("epsilon", noise, x, a_B).x0, noise, a_B)
        return torch.where(per_row(a_B, x) > 0, pulled, said)

    return guided


def dynamic_threshold(x0: Tensor, ratio: float = 0.995, most: float | None = None) -> Tensor:
    """Clips each image to its own quantile s of |pixel|, at least 1, and divides by s (Imagen).

    For pixels in [-1, 1], not for latents (Saharia et al. 2022, 2.3).

    Args:
        x0: predicted images.
        ratio: the quantile.
        most: s at most. diffusers' default 1 makes it plain clipping; the paper has none.
    """
    values = x0.flatten(1)
    s_B1 = torch.quantile(values.abs().to(torch.promote_types(x0.dtype, torch.float32)), ratio, 1)
    s_B1 = s_B1.clamp(min=1, max=most).to(x0.dtype)[:, None]
    return (values.clamp(-s_B1, s_B1) / s_B1).view_as(x0)
