"""Are samples as good as real images, are they all of them, and are they copies of some?

N generated, M real images, D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import DataError

_CHUNK = 1024


class Coverage(NamedTuple):
    """Both from 0 to 1."""

    precision: float
    """Generated images that lie among real ones: how good they are."""
    recall: float
    """Real images that lie among generated ones: how many sorts there are."""


class Nearest(NamedTuple):
    """The real image that is nearest to each generated one."""

    index_N: Tensor
    distance_N: Tensor
    """Euclidean."""


def coverage(made_ND: Tensor, real_MD: Tensor, neighbours: int = 3) -> Coverage:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    An image lies among others if it is no farther from one of them than that one's own
    `neighbours`-th neighbour. Sets of equal sizes compare.

    Raises:
        DataError: a set has no more images than `neighbours`.
    """
    for name, each in (("generated", made_ND), ("real", real_MD)):
        if len(each) <= neighbours:
            raise DataError(
                f"{len(each)} {name} images: precision and recall look at {neighbours} neighbours "
                f"of each, so give {neighbours + 1} or more."
            )
    made_ND, real_MD = made_ND.double(), real_MD.double()
    precision = _among(made_ND, real_MD, _reach(real_MD, neighbours))
    recall = _among(real_MD, made_ND, _reach(made_ND, neighbours))
    return Coverage(precision, recall)


def nearest(made_ND: Tensor, real_MD: Tensor) -> Nearest:
    """The nearest real image of each generated one, the first of equals."""
    pairs = [_distances(rows, real_MD.double()).min(1) for rows in made_ND.double().split(_CHUNK)]
    return Nearest(
        torch.cat([each.indices for each in pairs]), torch.cat([each.values for each in pairs])
    )


def copied(made_ND: Tensor, train_MD: Tensor, held_KD: Tensor) -> float:
    """Share of generated images that are nearer to a training image than to any held-out one.

    Both sets are cut to the same size, so a model that copies nothing has about 0.5, one that
    copies all has 1; near 1 it memorised (a two-sample view of Meehan et al. 2020).

    Raises:
        DataError: nothing is held out.
    """
    size = min(len(train_MD), len(held_KD))
    if not size or not len(made_ND):
        raise DataError("memorisation is judged beside held-out images; give data.test.")
    draws = torch.Generator().manual_seed(0)
    train = train_MD[torch.randperm(len(train_MD), generator=draws)[:size]]
    held = held_KD[torch.randperm(len(held_KD), generator=draws)[:size]]
    to_train, to_held = nearest(made_ND, train).distance_N, nearest(made_ND, held).distance_N
    return float((to_train < to_held).double().mean() + 0.5 * (to_train == to_held).double().mean())


def _reach(images_ND: Tensor, neighbours: int) -> Tensor:
    """How far the k-th neighbour of each image is; the image itself does not count."""
    found = [
        _distances(rows, images_ND).kthvalue(neighbours + 1, dim=1).values
        for rows in images_ND.split(_CHUNK)
    ]
    return torch.cat(found)


def _among(images_ND: Tensor, others_MD: Tensor, reach_M: Tensor) -> float:
    hits = [(_distances(rows, others_MD) <= reach_M).any(1) for rows in images_ND.split(_CHUNK)]
    return float(torch.cat(hits).double().mean())


def _distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Without the matrix trick, whose rounding is larger than the distance of a copy."""
    return torch.cdist(a_ND, b_MD, compute_mode="donot_use_mm_for_euclid_dist")
