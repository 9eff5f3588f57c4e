"""Random numbers as a pure function of (seed, epoch, sample key, purpose).

No generator has state, so any world size, worker count or restart draws the same numbers, and no
library's release notes can change them. B rows, N draws a row.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, and plans and indexes need only `row_key`
    from torch import Tensor

# The constants of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
# Generators, OOPSLA 2014), written as signed 64-bit because torch has no unsigned product.
_GAMMA = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15


def row_key(*parts: object) -> int:
    """A 63-bit random key, the same for the same parts: seed, epoch, sample key ..."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(draws_B: "Tensor", purpose: str, count: int) -> "Tensor":
    """Returns (B, count) float64 in [0, 1), the same for a row whatever rows stand beside it.

    The first n of `count` numbers do not depend on `count`, so padding changes nothing.
    `purpose` separates users: two objectives never see the same numbers.
    """
    return _bits(draws_B ^ row_key(purpose), count).double() * 2.0**-53


def normal(draws_B: "Tensor", purpose: str, count: int) -> "Tensor":
    """Returns (B, count) float64 normal numbers, by the inverse of their distribution.

    Like `uniform`: the same for a row whatever stands beside it, the first n of `count` too.
    """
    import torch

    return torch.special.ndtri(uniform(draws_B, purpose, count).clamp(min=2.0**-54))


def permutation(count: int, key: int) -> "Tensor":
    """A random order of range(count), (count,) int64: the ranks of as many random numbers."""
    import torch

    return torch.argsort(_bits(torch.tensor([key]), count)[0], stable=True)


def _bits(keys_B: "Tensor", count: int) -> "Tensor":
    """(B, count) int64, 53 random bits each."""
    import torch

    counter_N = torch.arange(1, count + 1, dtype=torch.int64, device=keys_B.device)
    state_BN = _finalise(keys_B[:, None]) + counter_N * _GAMMA
    return _shift(_finalise(state_BN), 11)


def _finalise(state: "Tensor") -> "Tensor":
    state = (state ^ _shift(state, 30)) * _MIX_1
    state = (state ^ _shift(state, 27)) * _MIX_2
    return state ^ _shift(state, 31)


def _shift(state: "Tensor", bits: int) -> "Tensor":
    """Logical right shift; torch's own keeps the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
