"""Self-critical sequence training: a caption is worth what it adds to the greedy one.

Rennie et al., CVPR 2017: L = -(r(sampled) - r(greedy)) * log p(sampled), with CIDEr-D as r.
B rows, T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .metrics.cider import CiderD
from .metrics.ptb import tokenize


def rewards(
    captions: Sequence[str], references: Sequence[Sequence[str]], weights: CiderD
) -> Tensor:
    """CIDEr-D of each caption against its image's references, (B,) float64.

    Args:
        captions: one an image, as text.
        references: texts of each image.
        weights: of the training references (`cider.weights`); a batch's own would make a caption's
            reward depend on its neighbours.
    """
    pairs = zip(captions, references, strict=True)
    found = [
        weights.score(tokenize(one), [tokenize(text) for text in texts]) for one, texts in pairs
    ]
    return torch.tensor(found, dtype=torch.float64)


def advantages(
    sampled: Sequence[str],
    greedy: Sequence[str],
    references: Sequence[Sequence[str]],
    weights: CiderD,
) -> Tensor:
    """How much better each sampled caption is than the greedy one, (B,), -10 to 10."""
    return rewards(sampled, references, weights) - rewards(greedy, references, weights)


def loss(log_p_BT: Tensor, real_BT: Tensor, advantage_B: Tensor) -> Tensor:
    """Loss of each row, (B,): the mean over its tokens, as the usual implementations take.

    Args:
        log_p_BT: log-probability of each sampled token, with gradients.
        real_BT: bool, True up to and with the token that ends the text.
        advantage_B: from `advantages`; a constant.
    """
    worth_B = advantage_B.detach().to(log_p_BT)
    sum_B = log_p_BT.where(real_BT, 0.0).sum(1)
    return -worth_B * sum_B / real_BT.sum(1).clamp(min=1)
