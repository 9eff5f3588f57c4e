"""Whether pictures keep to the edges that they were told: F1 of edge pixels with a tolerance.

As boundaries are scored in segmentation (Martin, Fowlkes and Malik 2004), without their one-to-one
matching. H x W pixels.
"""

from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """All from 0 to 1."""

    precision: float
    """Share of the picture's edge pixels that lie near one of the hint."""
    recall: float
    """Share of the hint's edge pixels that the picture has one near."""
    f1: float
    iou: float
    """Pixels near both over pixels near either, each grown by the tolerance."""


def agreement(made_HW: np.ndarray, hint_HW: np.ndarray, tolerance: int = 1) -> Agreement:
    """Edges of a picture against those it was told; both empty agree.

    Args:
        made_HW: edges of the picture, 0 where there is none.
        hint_HW: the hint.
        tolerance: pixels, along the wider of the two directions.
    """
    made, hint = made_HW > 0, hint_HW > 0
    if not made.any() and not hint.any():
        return Agreement(1.0, 1.0, 1.0, 1.0)
    near_made, near_hint = _grown(made, tolerance), _grown(hint, tolerance)
    precision = float((made & near_hint).sum() / max(1, made.sum()))
    recall = float((hint & near_made).sum() / max(1, hint.sum()))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    either = (near_made | near_hint).sum()
    return Agreement(precision, recall, f1, float((near_made & near_hint).sum() / either))


def _grown(edges_HW: np.ndarray, by: int) -> np.ndarray:
    height, width = edges_HW.shape
    wide = np.pad(edges_HW, by)
    shifts = range(2 * by + 1)
    return np.any(
        [wide[down : down + height, right : right + width] for down in shifts for right in shifts],
        axis=0,
    )
