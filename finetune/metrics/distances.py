"""How far generated images lie from real ones, in the features of some network.

The numbers mean something only beside the network's name, and beside what two halves of the real
images are apart (the floor). Only in Inception's features (Szegedy et al. 2016, the weights of
2015-12-05) are they called FID and KID. N generated, M real images, D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import DataError

_SUBSETS, _SUBSET = 100, 1000


class Kernel(NamedTuple):
    """A kernel distance and how sure it is."""

    mean: float
    std: float
    """Over subsets; 0 where there is one."""


def frechet(made_ND: Tensor, real_MD: Tensor) -> float:
    """Frechet distance of the normal distributions with the means and covariances of both sets.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64 (Heusel et al. 2017, eq. 6). It falls
    with the number of images, so only sets of equal sizes compare.

    Raises:
        DataError: fewer than two images, other widths, or features that are not finite.
    """
    made_ND, real_MD = _checked(made_ND, real_MD)
    apart_D = made_ND.mean(0) - real_MD.mean(0)
    a_ND = (made_ND - made_ND.mean(0)) / (len(made_ND) - 1) ** 0.5
    b_MD = (real_MD - real_MD.mean(0)) / (len(real_MD) - 1) ** 0.5
    # S1 = A'A and S2 = B'B, so the roots of the eigenvalues of S1 S2 are singular values of A B'.
    shared = torch.linalg.svdvals(_square(a_ND) @ _square(b_MD).T).sum()
    total = apart_D.square().sum() + a_ND.square().sum() + b_MD.square().sum() - 2 * shared
    return max(0.0, float(total))


def kernel(
    made_ND: Tensor, real_MD: Tensor, *, subsets: int = _SUBSETS, size: int = _SUBSET, seed: int = 0
) -> Kernel:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    The mean over random subsets, as published KIDs are; where both sets are no larger than
    `size`, it is computed once, of everything. It may fall below 0 where there is no difference.

    Raises:
        DataError: as `frechet`.
    """
    made_ND, real_MD = _checked(made_ND, real_MD)
    if max(len(made_ND), len(real_MD)) <= size:
        return Kernel(_mmd(made_ND, real_MD), 0.0)
    size = min(size, len(made_ND), len(real_MD))
    draws = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [
            _mmd(*(each[torch.randperm(len(each), generator=draws)[:size]] for each in pair))
            for pair in [(made_ND, real_MD)] * subsets
        ]
    )
    return Kernel(float(found.mean()), float(found.std(correction=0)))


def _mmd(x_ND: Tensor, y_MD: Tensor) -> float:
    def like(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def apart(a: Tensor) -> Tensor:
        """Mean over pairs of two different rows."""
        every = like(a, a)
        return (every.sum() - every.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(apart(x_ND) + apart(y_MD) - 2 * like(x_ND, y_MD).mean())


def _square(a_ND: Tensor) -> Tensor:
    """A matrix of at most D rows with the same A'A: fewer rows cost less."""
    return torch.linalg.qr(a_ND, mode="r").R if len(a_ND) > a_ND.shape[1] else a_ND


def _checked(made_ND: Tensor, real_MD: Tensor) -> tuple[Tensor, Tensor]:
    for name, each in (("generated", made_ND), ("real", real_MD)):
        if each.ndim != 2 or len(each) < 2 or not bool(torch.isfinite(each).all()):
            raise DataError(
                f"features of {name} images {tuple(each.shape)}: a distance needs two images or "
                "more, a row of finite numbers each."
            )
    if made_ND.shape[1] != real_MD.shape[1]:
        raise DataError(
            f"{made_ND.shape[1]} features of generated images and {real_MD.shape[1]} of real ones; "
            "both must come from one network."
        )
    return made_ND.double(), real_MD.double()
