"""Whether pictures show one subject, still show its class, and differ from one another.

Of unit vectors of pictures in some named encoder, so similarity is the cosine of an angle. N made
pictures, M pictures of the subject, D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import DataError


class Fidelity(NamedTuple):
    """Subject fidelity (DreamBooth, 4.1), beside what bounds it."""

    similarity: float
    """Mean over all pairs of a made picture and one of the subject."""
    among: float
    """The same among the subject's own pictures, each with the others: as good as it gets."""


def fidelity(made_ND: Tensor, subject_MD: Tensor) -> Fidelity:
    """How alike made pictures and those of the subject are.

    Raises:
        DataError: no made picture, or fewer than two of the subject.
    """
    if not len(made_ND) or len(subject_MD) < 2:
        raise DataError(
            f"{len(made_ND)} made pictures and {len(subject_MD)} of the subject: fidelity compares "
            "1 or more with 2 or more."
        )
    made_ND, subject_MD = _unit(made_ND), _unit(subject_MD)
    return Fidelity(float((made_ND @ subject_MD.T).mean()), _among(subject_MD))


def diversity(made_ND: Tensor) -> float:
    """1 less the mean similarity among made pictures of one prompt: 0 where all are the same.

    Raises:
        DataError: fewer than two pictures.
    """
    if len(made_ND) < 2:
        raise DataError("diversity is between pictures: make 2 or more of a prompt.")
    return 1 - _among(_unit(made_ND))


def drift(after_ND: Tensor, before_ND: Tensor, subject_MD: Tensor) -> float:
    """How far pictures of the class have moved to the subject: 0 not at all, 1 all the way.

    Language drift (DreamBooth, 3.2) as a share: the means of the class before, of the class after
    and of the subject are three points, and the second is projected on the line from the first to
    the third. Below 0 the class has moved away.

    Args:
        after_ND: pictures of the class prompt, made by the tuned model.
        before_ND: the same prompt and noise, by its base.
        subject_MD: of the subject.

    Raises:
        DataError: the base's pictures of the class are the subject's, to this encoder.
    """
    before_D, after_D, subject_D = (_unit(f).mean(0) for f in (before_ND, after_ND, subject_MD))
    way_D = subject_D - before_D
    length = float(way_D @ way_D)
    if length < 1e-12:
        raise DataError(
            "this encoder does not tell the subject from the base's class: name another."
        )
    return float((after_D - before_D) @ way_D) / length


def moved(after_ND: Tensor, before_ND: Tensor) -> float:
    """Mean distance (1 less the cosine) between the pictures of the same prompt and noise."""
    return float(1 - (_unit(after_ND) * _unit(before_ND)).sum(1).mean())


def _unit(features_ND: Tensor) -> Tensor:
    return F.normalize(features_ND.double(), dim=1)


def _among(units_MD: Tensor) -> float:
    count = len(units_MD)
    alike = units_MD @ units_MD.T
    return float((alike.sum() - torch.diagonal(alike).sum()) / (count * (count - 1)))
