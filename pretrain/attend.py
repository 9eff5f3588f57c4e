"""Attention by SDPA, and who may look at whom: masks of joint and of left-to-right reading.

B rows, L tokens, N regions, S = L + N. True where a query (second last) may see a key (last).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .packing import Reach


def attend(
    query_BQD: Tensor,
    key_BKD: Tensor,
    value_BKD: Tensor,
    *,
    heads: int,
    mask: Tensor | Reach | None,
    dropout: float = 0.0,
) -> Tensor:
    """What each query found, (B, Q, D), by `heads` heads; of packed tokens B is 1."""
    if not isinstance(mask, Reach):
        return _heads(query_BQD, key_BKD, value_BKD, heads, mask, dropout)
    found_KQD = _heads(
        mask.queries.fill(query_BQD),
        mask.keys.fill(key_BKD),
        mask.keys.fill(value_BKD),
        heads,
        mask.mask,
        dropout,
    )
    return mask.queries.empty(found_KQD)


def _heads(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, dropout: float
) -> Tensor:
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return found.transpose(1, 2).flatten(2)


def joint_mask(real_BL: Tensor, seen_BN: Tensor, causal_B: Tensor | None) -> Tensor:
    """Returns (B, 1, 1, S), or (B, 1, S, S) where some rows are read from left to right.

    In such a row a word sees itself, the words before it and the regions; a region sees regions
    alone (VLP's sequence-to-sequence mask, Zhou et al. 2020).
    """
    keys_B11S = torch.cat([real_BL, seen_BN], dim=1)[:, None, None, :]
    if causal_B is None:
        return keys_B11S
    length = real_BL.shape[1]
    size = keys_B11S.shape[3]
    allowed_SS = torch.ones(size, size, dtype=torch.bool, device=real_BL.device)
    allowed_SS[:length, :length].tril_()
    allowed_SS[length:, :length] = False
    return keys_B11S & (allowed_SS | ~causal_B[:, None, None, None])


def text_mask(real_BL: Tensor, causal_B: Tensor | None) -> Tensor:
    """Words among themselves: (B, 1, 1, L), or (B, 1, L, L)."""
    return joint_mask(real_BL, real_BL[:, :0], causal_B)


def text_keys(real_BL: Tensor, causal_B: Tensor | None) -> Tensor:
    """Words as a region of another stream sees them, (B, 1, 1, L).

    Of a text read from left to right it sees the first token, which knows no word, and no more.
    """
    if causal_B is not None:
        first_L = torch.arange(real_BL.shape[1], device=real_BL.device) == 0
        real_BL = real_BL & (first_L | ~causal_B[:, None])
    return real_BL[:, None, None, :]


def region_keys(real_BN: Tensor | None) -> Tensor | None:
    """Regions as they are seen, (B, N): the real ones, or all that only fill up where none is.

    Attention to nothing would be no number, which no later mask could take away.
    """
    return None if real_BN is None else real_BN | ~real_BN.any(1, keepdim=True)
