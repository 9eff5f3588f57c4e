import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diptych.data import draws

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """The finaliser of SplitMix64, as its authors wrote it."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def reference(key: int, purpose: str, count: int) -> list[float]:
    state = splitmix(key ^ draws.row_key(purpose))
    mixed = [splitmix((state + n * 0x9E3779B97F4A7C15) & MASK) for n in range(1, count + 1)]
    return [(bits >> 11) / 2**53 for bits in mixed]


def keys(count: int) -> Tensor:
    return torch.tensor([draws.row_key(0, 0, "00000.tar", f"{n:06d}") for n in range(count)])


def test_the_stream_never_changes() -> None:
    # printf '7/1/00000.tar/000042' | b2sum -l 64, without the last bit
    assert draws.row_key(7, 1, "00000.tar", "000042") == 8771372941367980373
    found = draws.uniform(torch.tensor([draws.row_key(7, 1, "a")]), "mask", 3)[0].tolist()
    assert found == [0.8687002494572452, 0.5205615340618108, 0.12194937829810759]
    assert draws.permutation(8, draws.row_key(7)).tolist() == [4, 5, 1, 0, 3, 7, 6, 2]


@given(st.integers(0, 2**63 - 1), st.text(max_size=5), st.integers(0, 9))
def test_the_numbers_are_those_of_splitmix64(key: int, purpose: str, count: int) -> None:
    found = draws.uniform(torch.tensor([key]), purpose, count)
    assert found.shape == (1, count)
    assert found[0].tolist() == reference(key, purpose, count)


@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 20))
def test_a_row_does_not_depend_on_rows_or_columns_beside_it(
    rows: int, count: int, more: int
) -> None:
    whole = draws.uniform(keys(rows), "mask", count + more)
    for row in range(rows):
        assert (draws.uniform(keys(rows)[row:], "mask", count)[0] == whole[row, :count]).all()


@given(st.integers(0, 300), st.integers(0, 2**63 - 1))
def test_a_permutation_is_a_permutation(count: int, key: int) -> None:
    order = draws.permutation(count, key)
    assert sorted(order.tolist()) == list(range(count))
    assert (draws.permutation(count, key) == order).all()


def test_numbers_are_uniform() -> None:
    found = draws.uniform(keys(1000), "mask", 200)
    assert found.dtype == torch.float64
    assert 0 <= found.min() < found.max() < 1
    counts = torch.histc(found, 100, 0, 1)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi2 < 160  # 99 degrees of freedom: mean 99, deviation 14


@pytest.mark.parametrize("lag", ["column", "row", "purpose", "epoch"])
def test_neighbours_are_independent(lag: str) -> None:
    first = draws.uniform(keys(500), "mask", 200)
    second = {
        "column": lambda: first.roll(1, 1),
        "row": lambda: first.roll(1, 0),
        "purpose": lambda: draws.uniform(keys(500), "noise", 200),
        "epoch": lambda: draws.uniform(keys(500) ^ 1, "mask", 200),
    }[lag]()
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 4 / first.numel() ** 0.5
    assert not (first == second).any()


def test_every_place_is_as_likely_in_a_permutation() -> None:
    orders = torch.stack([draws.permutation(5, draws.row_key(n)) for n in range(4000)])
    for place in range(5):
        counts = torch.bincount(orders[:, place], minlength=5)
        assert ((counts - 800) ** 2 / 800).sum() < 25  # 4 degrees of freedom


def test_keys_differ_by_every_part() -> None:
    parts = list(itertools.product(range(5), range(5), "ab", "cd"))
    assert len({draws.row_key(*each) for each in parts}) == len(parts)
    assert all(0 <= draws.row_key(*each) < 2**63 for each in parts)
