"""What is added to an image, what a network is to say of it, and what follows from what it said.

B rows, C channels; x of shape (B, ...), and of (B,) whatever belongs to a row. The two families
are diffusion, x_t = sqrt(a) x_0 + sqrt(1 - a) noise with a = alphas_bar, and rectified flow,
x_s = (1 - s) x_0 + s noise with s in [0, 1].
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Predict = Literal["epsilon", "v", "x0"]
Density = Literal["uniform", "logit_normal", "mode", "cosmap"]


class Parts(NamedTuple):
    """What a noised image is made of, as a network sees it."""

    x0: Tensor
    noise: Tensor


def per_row(values_B: Tensor, like: Tensor) -> Tensor:
    """Values of the rows in the shape (B, 1, 1, ...) and of the type that `like` has."""
    return values_B.to(like.dtype).view(-1, *(1 for _ in like.shape[1:]))


def add_noise(x0: Tensor, noise: Tensor, alphas_bar_B: Tensor) -> Tensor:
    """x_t: the lecture's diffusion kernel."""
    signal, spread = _roots(alphas_bar_B, x0)
    return signal * x0 + spread * noise


def target(predict: Predict, x0: Tensor, noise: Tensor, alphas_bar_B: Tensor) -> Tensor:
    """What the network is to say: epsilon is the noise, v = sqrt(a) noise - sqrt(1 - a) x_0.

    v is of Salimans and Ho (2022). x0 is the image itself.
    """
    if predict == "epsilon":
        return noise
    if predict == "x0":
        return x0
    signal, spread = _roots(alphas_bar_B, x0)
    return signal * noise - spread * x0


def parts(predict: Predict, said: Tensor, x_t: Tensor, alphas_bar_B: Tensor) -> Parts:
    """Image and noise that follow from what a network said of x_t.

    Where x_t is noise alone, an epsilon says nothing of the image, which then is not finite; where
    it has no noise, an x0 says nothing of the noise.
    """
    signal, spread = _roots(alphas_bar_B, x_t)
    if predict == "epsilon":
        return Parts((x_t - spread * said) / signal, said)
    if predict == "x0":
        return Parts(said, (x_t - signal * said) / spread)
    return Parts(signal * x_t - spread * said, signal * said + spread * x_t)


def add_flow(x0: Tensor, noise: Tensor, s_B: Tensor) -> Tensor:
    """x_s: on the straight line from image to noise (Liu et al. 2023; Lipman et al. 2023)."""
    s = per_row(s_B, x0)
    return (1 - s) * x0 + s * noise


def flow_target(x0: Tensor, noise: Tensor) -> Tensor:
    """The velocity along the line, dx_s / ds = noise - x_0, as in SD3 and FLUX."""
    return noise - x0


def flow_parts(said: Tensor, x_s: Tensor, s_B: Tensor) -> Parts:
    """Image and noise that follow from the velocity that a network said."""
    s = per_row(s_B, x_s)
    return Parts(x_s - s * said, x_s + (1 - s) * said)


def flow_times(
    draws_B: Tensor,
    density: Density = "logit_normal",
    *,
    mean: float = 0.0,
    spread: float = 1.0,
    scale: float = 1.29,
    shift: float = 1.0,
) -> Tensor:
    """Where rows stand on the line, (B,) in [0, 1], from uniform numbers (Esser et al. 2024, 3.1).

    Args:
        draws_B: uniform in [0, 1).
        density: `uniform`; `logit_normal`, whose logit is normal; `mode`, heavy in the middle for
            a positive scale; `cosmap`, which gives the SNR of the cosine schedule.
        mean: of the logit; above 0 prefers noise.
        spread: standard deviation of the logit.
        scale: of `mode`, from -1 to 1.75.
        shift: at least 1: more noise for larger images, about sqrt(pixels / pixels at shift 1).
    """
    if density == "logit_normal":
        s_B = torch.sigmoid(mean + spread * torch.special.ndtri(draws_B))
    elif density == "mode":
        s_B = 1 - draws_B - scale * (torch.cos(math.pi / 2 * draws_B).square() - 1 + draws_B)
    elif density == "cosmap":
        s_B = 1 - 1 / (torch.tan(math.pi / 2 * draws_B) + 1)
    else:
        s_B = draws_B
    return shifted(s_B, shift)


def shifted(s: Tensor, shift: float) -> Tensor:
    """shift s / (1 + (shift - 1) s): the same points 0 and 1, more noise between (eq. 23)."""
    return shift * s / (1 + (shift - 1) * s)


def offset(noise: Tensor, offset_BC: Tensor, strength: float) -> Tensor:
    """Noise offset (Guttenberg 2023): noise + strength times one normal number a channel.

    With it a network learns to change the brightness of a whole image.
    """
    return noise + strength * offset_BC.to(noise.dtype)[..., None, None]


def perturbed(noise: Tensor, other: Tensor, strength: float) -> Tensor:
    """Input perturbation (Ning et al. 2023): the noise that is put in; the target stays `noise`.

    The network then sees inputs slightly off, as they are in sampling. The paper's strength is 0.1.
    """
    return noise + strength * other


def _roots(alphas_bar_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(a) and sqrt(1 - a), taken in the precision of `alphas_bar_B`."""
    return per_row(alphas_bar_B.sqrt(), like), per_row((1 - alphas_bar_B).sqrt(), like)
