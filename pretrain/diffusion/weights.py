"""How much the loss of each timestep counts, as a function of its signal to noise ratio.

Papers state a weight for one prediction; peers carry it over to others each in their own way and
disagree. Here a weight always means the same loss, whatever the network predicts. With errors e of
the three predictions |e_epsilon|^2 = snr |e_x0|^2 and |e_v|^2 = (snr + 1) |e_x0|^2, hence

    weight_epsilon = weight_x0 / snr        weight_v = weight_x0 / (snr + 1)

Values at snr = 0 and at infinity are the limits: never NaN, infinite only where the paper's weight
is. B rows.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from .targets import Predict

Weighting = Literal["none", "min_snr", "soft_min_snr", "p2", "debiased"]


def flat(snr_B: Tensor, predict: Predict) -> Tensor:
    """1 for every timestep and every prediction: DDPM's L_simple (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(snr_B)


def min_snr(snr_B: Tensor, predict: Predict, gamma: float = 5.0) -> Tensor:
    """min(snr, gamma) on x0 (Hang et al. 2023, eq. 8): none of the easy steps dominates.

    Epsilon: min(snr, gamma) / snr, 1 at snr = 0, where diffusers' training script has 0 / 0.
    v: min(snr, gamma) / (snr + 1), 0 at snr = 0. The authors' code puts 1 there, their paper does
    not; so with zero terminal SNR the last timestep itself is not trained: prefer another weight.
    """
    if predict == "epsilon":
        return torch.where(snr_B <= gamma, 1.0, gamma / snr_B)
    return _over_v(snr_B.clamp(max=gamma), snr_B, predict)


def soft_min_snr(snr_B: Tensor, predict: Predict, gamma: float = 5.0) -> Tensor:
    """snr gamma / (snr + gamma) on x0 (Crowson et al. 2024): min-SNR without its corner.

    Epsilon: gamma / (snr + gamma). v: that times snr / (snr + 1).
    """
    if predict == "epsilon":
        return gamma / (snr_B + gamma)
    return _over_v(gamma / (1 + gamma / snr_B), snr_B, predict)


def p2(snr_B: Tensor, predict: Predict, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """1 / (k + snr)^gamma on epsilon (Choi et al. 2022, eq. 7): coarse content counts more.

    v: that times snr / (snr + 1), the same loss. OneTrainer's 1 / (k + 1 + snr)^gamma for v is
    another loss, which the paper does not have.
    """
    epsilon_B = (k + snr_B) ** -gamma
    if predict == "epsilon":
        return epsilon_B
    if predict == "v":
        return epsilon_B / (1 + 1 / snr_B)
    # Two forms of snr / (k + snr)^gamma: the first is exact at 0, the second at infinity.
    large_B = snr_B ** (1 - gamma) * (1 + k / snr_B) ** -gamma
    return torch.where(snr_B <= 1, snr_B * epsilon_B, large_B)


def debiased(snr_B: Tensor, predict: Predict) -> Tensor:
    """1 / sqrt(snr) on epsilon (Yu et al. 2023); infinite at snr = 0, not cut at snr = 1000.

    v: sqrt(snr) / (snr + 1), the same loss. For v kohya has 1 / (snr + 1) and OneTrainer
    1 / sqrt(snr + 1): other losses, and they differ from each other.
    """
    root_B = snr_B.sqrt()
    if predict == "epsilon":
        return 1 / root_B
    return 1 / (root_B + 1 / root_B) if predict == "v" else root_B


WEIGHTS: Mapping[Weighting, Callable[[Tensor, Predict], Tensor]] = {
    "none": flat,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "p2": p2,
    "debiased": debiased,
}
"""Each with the paper's own constants."""


def _over_v(x0_B: Tensor, snr_B: Tensor, predict: Predict) -> Tensor:
    """A weight of x0, which is finite, as one of x0 or of v."""
    return x0_B / (snr_B + 1) if predict == "v" else x0_B
