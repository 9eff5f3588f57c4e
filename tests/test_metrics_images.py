"""Distances of image sets, against closed forms and against torch-fidelity's arithmetic."""

import pytest
import torch
from torch import Tensor

from diptych.errors import DataError
from diptych.finetune.metrics import coverage as among
from diptych.finetune.metrics.distances import frechet, kernel


def cloud(count: int, width: int = 8, shift: float = 0.0, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, width, generator=draws, dtype=torch.float64) @ mix.double() + shift


@pytest.mark.parametrize(("count", "width"), [(400, 8), (40, 64)], ids=["many", "fewer than wide"])
def test_frechet_is_torch_fidelitys(count: int, width: int) -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    made, real = cloud(count, width, 0.5, 1), 0.7 * cloud(count + 7, width, 0, 2)
    stats = [metric_fid.fid_features_to_statistics(each) for each in (made, real)]
    theirs = metric_fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert frechet(made, real) == pytest.approx(theirs, rel=1e-6)


def test_frechet_of_two_normals_has_a_closed_form() -> None:
    """Diagonal covariances commute: sum (m1 - m2)^2 + (s1 - s2)^2 of what the samples have."""
    one = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    two = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]]) + torch.tensor([1.0, -1.0])
    spreads = [(each.var(0)).sqrt() for each in (one, two)]
    assert frechet(one, two) == pytest.approx(2 + float((spreads[0] - spreads[1]).square().sum()))
    assert frechet(one, one) == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_torch_fidelitys() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    made, real = cloud(60, shift=0.5, seed=1), cloud(60, seed=2)
    theirs = metric_kid.kernel_mmd(
        made.numpy(),
        real.numpy(),
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
    )
    assert kernel(made, real).mean == pytest.approx(float(theirs), rel=1e-9)
    assert kernel(made, real).std == 0
    few = kernel(made, real, size=30, subsets=40)
    assert few.mean == pytest.approx(float(theirs), abs=4 * few.std / 40**0.5) and few.std > 0


def test_kernel_distance_is_unbiased() -> None:
    """Of two halves of one thing it is 0 in the mean, below it as often as above."""
    found = [kernel(cloud(30, seed=2 * n), cloud(30, seed=2 * n + 1)).mean for n in range(200)]
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 3 * float(values.std()) / 200**0.5
    assert 40 < int((values < 0).sum()) < 160


def test_coverage_is_torch_fidelitys() -> None:
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    made, real = cloud(120, shift=1.5, seed=1), cloud(100, seed=2)
    theirs = metric_prc.calculate_precision_recall_full(made, real)
    ours = among.coverage(made, real)
    assert ours == pytest.approx(theirs, abs=1e-6)  # theirs is float32
    assert 0 < ours.precision < 1


def test_coverage_tells_quality_from_variety() -> None:
    real = cloud(200, seed=1)
    mode = real[:1] + 0.01 * cloud(50, seed=2)
    found = among.coverage(mode, real)
    assert found.precision == 1 and found.recall < 0.1
    far = among.coverage(torch.cat([real[:150], real[:50] + 1e3]), real)
    assert far.precision == pytest.approx(0.75) and far.recall > 0.7


def test_a_copy_is_found() -> None:
    train, held = cloud(80, seed=1), cloud(70, seed=2)
    found = among.nearest(train[[3, 71]], train)
    assert found.index_N.tolist() == [3, 71] and found.distance_N.tolist() == [0, 0]
    assert among.copied(train[:40] + 1e-3, train, held) > 0.85
    assert 0.3 < among.copied(cloud(300, seed=3), train, held) < 0.7


@pytest.mark.parametrize(
    ("made", "real", "said"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "two images"),
        (torch.full((4, 3), torch.nan), torch.zeros(5, 3), "finite"),
        (torch.zeros(4, 2), torch.zeros(5, 3), "one network"),
    ],
)
def test_features_that_mean_nothing_are_refused(made: Tensor, real: Tensor, said: str) -> None:
    for distance in (frechet, kernel):
        with pytest.raises(DataError, match=said):
            distance(made, real)


def test_too_few_images_for_neighbours_are_refused() -> None:
    with pytest.raises(DataError, match="4 or more"):
        among.coverage(torch.zeros(3, 2), torch.zeros(9, 2))
