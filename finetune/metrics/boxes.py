"""Boxes against the true ones: intersection over union, and the share that is near enough.

B rows; a box is (left, top, right, bottom) in any one unit.
"""

from torch import Tensor

from ...errors import DataError


def iou(boxes_B4: Tensor, truth_B4: Tensor) -> Tensor:
    """Shared area as a share of the joint area of each pair of boxes, (B,), 0 to 1.

    A box whose right is not beyond its left, or bottom beyond its top, is empty: 0.

    Raises:
        DataError: not two lists of as many boxes.
    """
    if boxes_B4.shape != truth_B4.shape or boxes_B4.shape[1:] != (4,):
        raise DataError(
            f"IoU needs two (B, 4) tensors of boxes, not {tuple(boxes_B4.shape)} and "
            f"{tuple(truth_B4.shape)}. Give each box its true one."
        )
    boxes_B4, truth_B4 = boxes_B4.double(), truth_B4.double()
    low_B2 = boxes_B4[:, :2].maximum(truth_B4[:, :2])
    high_B2 = boxes_B4[:, 2:].minimum(truth_B4[:, 2:])
    shared_B = _area(low_B2, high_B2)
    joint_B = _area(*boxes_B4.split(2, 1)) + _area(*truth_B4.split(2, 1)) - shared_B
    return (shared_B / joint_B).where(joint_B > 0, 0.0)


def accuracy(boxes_B4: Tensor, truth_B4: Tensor, at: float = 0.5) -> float:
    """Share of the boxes whose IoU with the true one is at least `at`; 0 of none."""
    return float((iou(boxes_B4, truth_B4) >= at).double().mean()) if len(boxes_B4) else 0.0


def _area(low_B2: Tensor, high_B2: Tensor) -> Tensor:
    return (high_B2 - low_B2).clamp(min=0).prod(1)
