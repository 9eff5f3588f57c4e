"""Schedules, weights and targets: against diffusers in float64, and against golden numbers."""

import math
from typing import Any, get_args

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diptych.data.draws import normal, row_key
from diptych.pretrain.diffusion import targets, weights
from diptych.pretrain.diffusion.schedules import Schedule, snr, terminal
from diptych.pretrain.diffusion.targets import Density, Predict
from diptych.pretrain.diffusion.weights import WEIGHTS

SCHEDULES = [
    ("linear", "linear", 1e-4, 0.02),
    ("scaled_linear", "scaled_linear", 0.00085, 0.012),
    ("cosine", "squaredcos_cap_v2", 1e-4, 0.02),
]
INF = math.inf
GRID = [0.0, 0.1, 1.0, 5.0, 50.0, 1e4, INF]
GOLDEN = {
    # shared/peers.md 4.4 at gamma 5; where peers disagree, the value that follows from the paper
    ("min_snr", "epsilon"): [1, 1, 1, 1, 0.1, 5e-4, 0],
    ("min_snr", "v"): [0, 0.0909, 0.5, 0.8333, 0.0980, 5e-4, 0],
    ("min_snr", "x0"): [0, 0.1, 1, 5, 5, 5, 5],
    ("soft_min_snr", "epsilon"): [1, 0.9804, 0.8333, 0.5, 0.0909, 4.998e-4, 0],
    ("soft_min_snr", "v"): [0, 0.0891, 0.4167, 0.4167, 0.0891, 4.997e-4, 0],
    ("soft_min_snr", "x0"): [0, 0.0980, 0.8333, 2.5, 4.5455, 4.9975, 5],
    ("p2", "epsilon"): [1, 0.9091, 0.5, 0.1667, 0.0196, 1e-4, 0],
    ("p2", "v"): [0, 0.0826, 0.25, 0.1389, 0.0192, 1e-4, 0],
    ("p2", "x0"): [0, 0.0909, 0.5, 0.8333, 0.9804, 0.9999, 1],
    ("debiased", "epsilon"): [INF, 3.1623, 1, 0.4472, 0.1414, 0.01, 0],
    ("debiased", "v"): [0, 0.2875, 0.5, 0.3727, 0.1387, 0.01, 0],
    ("debiased", "x0"): [0, 0.3162, 1, 2.2361, 7.0711, 100, INF],
    ("none", "epsilon"): [1] * 7,
    ("none", "v"): [1] * 7,
    ("none", "x0"): [1] * 7,
}


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("ours", "theirs", "start", "end"), SCHEDULES)
def test_schedules_are_those_of_diffusers(ours: str, theirs: Any, start: float, end: float) -> None:
    schedule = Schedule.model_validate({"shape": ours, "beta_start": start, "beta_end": end})
    other = DDPMScheduler(1000, start, end, theirs)
    found = schedule.alphas_bar()
    assert found.dtype == torch.float64
    assert (found.diff() < 0).all()
    torch.testing.assert_close(found, other.alphas_cumprod.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.betas(), other.betas.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ours", "theirs", "start", "end"), SCHEDULES)
def test_zero_terminal_snr_is_that_of_diffusers(
    ours: str, theirs: Any, start: float, end: float
) -> None:
    plain = Schedule.model_validate({"shape": ours, "beta_start": start, "beta_end": end})
    schedule = plain.model_copy(update={"zero_terminal_snr": True})
    found = schedule.alphas_bar()
    exact = torch.cumprod(1 - rescale_zero_terminal_snr(plain.betas()), dim=0)
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=0)
    assert found[-1] == 0
    assert found[0] == pytest.approx(float(plain.alphas_bar()[0]), abs=1e-15)
    assert snr(found)[-1] == 0
    torch.testing.assert_close(terminal(found), found)  # a second time it changes nothing
    other = DDPMScheduler(1000, start, end, theirs, rescale_betas_zero_snr=True)
    torch.testing.assert_close(found, other.alphas_cumprod.double(), atol=1e-6, rtol=0)


def test_a_schedule_that_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="beta_end"):
        Schedule(beta_start=0.1, beta_end=0.01)


@pytest.mark.parametrize(("method", "predict"), GOLDEN)
def test_weights_are_golden(method: weights.Weighting, predict: Predict) -> None:
    found = WEIGHTS[method](torch.tensor(GRID, dtype=torch.float64), predict)
    expected = torch.tensor(GOLDEN[method, predict], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=6e-5, rtol=6e-5)


def test_every_weight_has_golden_numbers_for_every_prediction() -> None:
    assert set(WEIGHTS) == set(get_args(weights.Weighting))
    assert set(GOLDEN) == {(method, predict) for method in WEIGHTS for predict in get_args(Predict)}


@pytest.mark.parametrize("method", [method for method in WEIGHTS if method != "none"])
def test_a_weight_means_the_same_loss_whatever_is_predicted(method: weights.Weighting) -> None:
    """The same wrong image, told in three ways, costs the same."""
    alphas_bar_B = Schedule().alphas_bar()[::100]
    x0, noise, wrong = double(10, 3, 2, 2), double(10, 3, 2, 2, seed=1), double(10, 3, 2, 2, seed=2)
    x_t = targets.add_noise(x0, noise, alphas_bar_B)
    signal, spread = (targets.per_row(root.sqrt(), x0) for root in (alphas_bar_B, 1 - alphas_bar_B))
    costs: list[torch.Tensor] = []
    for predict in get_args(Predict):
        said = targets.target(predict, wrong, (x_t - signal * wrong) / spread, alphas_bar_B)
        right = targets.target(predict, x0, noise, alphas_bar_B)
        weight_B = WEIGHTS[method](snr(alphas_bar_B), predict)
        costs.append(weight_B * (said - right).square().flatten(1).mean(1))
    torch.testing.assert_close(costs[0], costs[1])
    torch.testing.assert_close(costs[0], costs[2])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("predict", get_args(Predict))
def test_p2_has_its_limits_for_any_power(gamma: float, predict: Predict) -> None:
    found = weights.p2(torch.tensor(GRID, dtype=torch.float64), predict, gamma=gamma)
    assert not found.isnan().any()
    near = weights.p2(torch.tensor([1e-12, 1e14]).double(), predict, gamma=gamma)
    ends = found[[0, -1]]
    torch.testing.assert_close(ends[ends.isfinite()], near[ends.isfinite()], atol=1e-5, rtol=0)
    assert (near[ends.isinf()] > 1e6).all()


def test_noise_and_velocity_are_those_of_diffusers() -> None:
    schedule = Schedule(shape="scaled_linear", beta_start=0.00085, beta_end=0.012)
    other = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    other.alphas_cumprod = schedule.alphas_bar()
    x0, noise, t_B = double(8, 4, 5, 3), double(8, 4, 5, 3, seed=1), torch.arange(8) * 142
    a_B = schedule.alphas_bar()[t_B]
    steps = torch.IntTensor(t_B.tolist())
    theirs = other.add_noise(x0, noise, steps)
    torch.testing.assert_close(targets.add_noise(x0, noise, a_B), theirs, atol=1e-12, rtol=0)
    theirs = other.get_velocity(x0, noise, steps)
    torch.testing.assert_close(targets.target("v", x0, noise, a_B), theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("predict", get_args(Predict))
def test_what_was_said_gives_image_and_noise_back(predict: Predict) -> None:
    a_B = Schedule().alphas_bar()[torch.arange(8) * 142]
    x0, noise = double(8, 4, 5, 3), double(8, 4, 5, 3, seed=1)
    x_t = targets.add_noise(x0, noise, a_B)
    found = targets.parts(predict, targets.target(predict, x0, noise, a_B), x_t, a_B)
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.noise, noise)


def test_v_and_x0_know_the_image_in_pure_noise() -> None:
    x0, noise, a_B = double(2, 4), double(2, 4, seed=1), torch.zeros(2, dtype=torch.float64)
    x_t = targets.add_noise(x0, noise, a_B)
    assert torch.equal(x_t, noise)
    for predict in ("v", "x0"):
        said = targets.target(predict, x0, noise, a_B)
        torch.testing.assert_close(targets.parts(predict, said, x_t, a_B).x0, x0)
    assert not targets.parts("epsilon", noise, x_t, a_B).x0.isfinite().any()


def test_a_flow_is_a_straight_line() -> None:
    x0, noise, s_B = (
        double(3, 2, 2),
        double(3, 2, 2, seed=1),
        torch.tensor([0.0, 0.3, 1.0]).double(),
    )
    x_s = targets.add_flow(x0, noise, s_B)
    assert torch.equal(x_s[0], x0[0])
    assert torch.equal(x_s[2], noise[2])
    found = targets.flow_parts(targets.flow_target(x0, noise), x_s, s_B)
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.noise, noise)
    ahead = targets.add_flow(x0, noise, s_B + 1e-3)
    torch.testing.assert_close((ahead - x_s) / 1e-3, targets.flow_target(x0, noise))


@pytest.mark.parametrize("density", get_args(Density))
def test_a_density_is_the_one_of_its_paper(density: Density) -> None:
    """Quantiles of the drawn times, against the densities of Esser et al., section 3.1."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    s = targets.flow_times(u, density)
    assert 0 <= float(s.min()) < float(s.max()) <= 1
    places = torch.linspace(0.01, 0.99, 99).double()
    share, _ = torch.histogram(s, torch.linspace(0, 1, 101).double())
    share = share[1:-1] / 200_000 * 100
    middle = places[:-1] + 0.005
    if density == "logit_normal":
        logit = torch.logit(middle)
        expected = torch.exp(-(logit**2) / 2) / math.sqrt(2 * math.pi) / (middle * (1 - middle))
    elif density == "cosmap":
        expected = 2 / math.pi / (1 - 2 * middle + 2 * middle**2)
    elif density == "mode":  # the density is 1 / |derivative| of the map from u, at its inverse
        order = s.argsort()
        expected = 1 / torch.gradient(s[order], spacing=(u,))[0].abs()
        at = torch.searchsorted(s[order], middle).clamp(max=199_998)
        expected = expected[at]
        assert share[49] > 1.5 * share[4]  # heavy in the middle
    else:
        expected = torch.ones_like(share)
    torch.testing.assert_close(share, expected, atol=0.02, rtol=0.02)


def test_a_shift_keeps_the_ends_and_changes_the_snr_by_its_square() -> None:
    s = torch.tensor([0.0, 0.25, 0.5, 1.0]).double()
    moved = targets.shifted(s, 3.0)
    assert moved.tolist() == pytest.approx([0, 0.5, 0.75, 1])
    odds = (s[1:3] / (1 - s[1:3])) * 3
    torch.testing.assert_close(moved[1:3] / (1 - moved[1:3]), odds)
    torch.testing.assert_close(targets.shifted(s, 1.0), s)


def test_offset_and_perturbation() -> None:
    noise, more = double(5, 3, 4, 4), double(5, 3, 4, 4, seed=1)
    lifted = targets.offset(noise, double(5, 3, seed=2), 0.1) - noise
    assert torch.allclose(lifted, lifted[..., :1, :1].expand_as(lifted))
    torch.testing.assert_close(lifted[..., 0, 0], 0.1 * double(5, 3, seed=2))
    torch.testing.assert_close(targets.perturbed(noise, more, 0.1), noise + 0.1 * more)


def test_normal_numbers_are_normal_and_belong_to_their_row() -> None:
    draws_B = torch.tensor([row_key(0, number) for number in range(64)])
    found = normal(draws_B, "noise", 4000)
    assert found.isfinite().all()
    assert float(found.mean()) == pytest.approx(0, abs=0.01)
    assert float(found.std()) == pytest.approx(1, abs=0.01)
    assert float((found**4).mean()) == pytest.approx(3, abs=0.1)
    assert torch.equal(found[5:7], normal(draws_B[5:7], "noise", 4000))
    assert torch.equal(found[:, :10], normal(draws_B, "noise", 10))
    assert not torch.equal(found, normal(draws_B, "other", 4000))
