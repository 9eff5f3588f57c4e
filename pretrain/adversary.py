"""How one backward pass gives a first stage and its critic what two would (VQGAN, LDM).

With two optimisers the first stage's loss must leave the critic alone, and the critic's the first
stage. Here the critic looks at a copy of the images. What its verdict and the error want of the
images is taken by `autograd.grad`, which touches no parameter, and put into the loss as an inner
product with them: its gradient is exactly that. B rows, C channels, H x W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .gather import averaged

_LEAST = 1e-4
_MOST = 1e4
_KERNEL = 3


def wish(value_B: Tensor, image_BCHW: Tensor, *, again: bool) -> Tensor:
    """What each row's value wants of its image: its gradient. `again`: the graph stays."""
    return torch.autograd.grad(value_B.sum(), image_BCHW, retain_graph=again)[0]


def through(value_B: Tensor, wish_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
    """The values, with `wish_BCHW` as their gradient by the images, whatever made them."""
    product_B = (wish_BCHW * image_BCHW.float()).flatten(1).sum(1)
    return value_B.detach() + product_B - product_B.detach()


def balance(error_BCHW: Tensor, verdict_BCHW: Tensor, last_BCHW: Tensor) -> Tensor:
    """The adaptive weight of the critic's verdict, 0-d (Esser et al., CVPR 2021, eq. 7).

    The norm of the error's gradient by the weights of the last convolution over that of the
    verdict's: both want as much there. Over the rows of all ranks.

    Args:
        error_BCHW: what the error wants of the images; 0 for rows that do not count.
        verdict_BCHW: what the critic's verdict wants of them.
        last_BCHW: what the last convolution read.
    """
    read = last_BCHW.float()
    size = (error_BCHW.shape[1], read.shape[1], _KERNEL, _KERNEL)
    error, verdict = (
        torch.linalg.vector_norm(
            averaged(conv2d_weight(read, size, wish_BCHW, padding=1) / len(read))
        )
        for wish_BCHW in (error_BCHW, verdict_BCHW)
    )
    return (error / (verdict + _LEAST)).clamp(0, _MOST)


def pixel_error(way: str, said_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
    """Mean over a row's pixel values, (B,): `l1` or `l2`."""
    measure = F.l1_loss if way == "l1" else F.mse_loss
    return measure(said_BCHW, image_BCHW, reduction="none").flatten(1).mean(1)
