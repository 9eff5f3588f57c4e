"""How much noise there is at each timestep, in float64.

T timesteps, counted from 0: alphas_bar_T[0] is the cleanest. The lecture counts from 1.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...config import Record

_MOST_BETA = 0.999


class Schedule(Record):
    """x_t = sqrt(alphas_bar[t]) x_0 + sqrt(1 - alphas_bar[t]) noise.

    The defaults are those of DDPM (Ho et al. 2020). Latent diffusion (Rombach et al. 2022) takes
    `scaled_linear` from 0.00085 to 0.012 for Stable Diffusion, from 0.0015 to 0.0195 for LDM-8.
    """

    shape: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """`scaled_linear` is linear in sqrt(beta); `cosine` (Nichol and Dhariwal 2021) has no ends."""
    steps: int = Field(default=1000, ge=2)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    zero_terminal_snr: bool = False
    """Rescale so that the last timestep is noise alone (Lin et al. 2024)."""

    @model_validator(mode="after")
    def _sound(self) -> "Schedule":
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}")
        return self

    def alphas_bar(self) -> Tensor:
        """Returns (T,) float64 in [0, 1), falling: the product of 1 - beta up to each timestep."""
        alphas_bar_T = torch.cumprod(1 - self.betas(), dim=0)
        return terminal(alphas_bar_T) if self.zero_terminal_snr else alphas_bar_T

    def betas(self) -> Tensor:
        """Returns (T,) float64: the share of noise that each timestep adds, before rescaling."""
        if self.shape == "cosine":
            return _cosine(self.steps)
        power = 0.5 if self.shape == "scaled_linear" else 1.0
        start, end = self.beta_start**power, self.beta_end**power
        return torch.linspace(start, end, self.steps, dtype=torch.float64) ** (1 / power)


def terminal(alphas_bar_T: Tensor) -> Tensor:
    """Zero-terminal-SNR rescaling (Lin et al. 2024, algorithm 1), of alphas_bar itself.

    sqrt(alphas_bar) is shifted to end at 0, exactly, and stretched to begin where it did.
    """
    root_T = alphas_bar_T.sqrt()
    return ((root_T - root_T[-1]) * (root_T[0] / (root_T[0] - root_T[-1]))).square()


def snr(alphas_bar: Tensor) -> Tensor:
    """Signal to noise: alphas_bar / (1 - alphas_bar); 0 for noise alone, infinite for none."""
    return alphas_bar / (1 - alphas_bar)


def _cosine(steps: int) -> Tensor:
    """alphas_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2) for u in [0, 1], as betas capped."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    alphas_bar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square()
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=_MOST_BETA)
