"""Samplers and guidance: step for step against diffusers, and on Gaussians known in closed form."""

import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from diptych.errors import RecipeError
from diptych.pretrain.diffusion import guidance, samplers, sampling, targets
from diptych.pretrain.diffusion.samplers import Denoiser, Spacing
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.diffusion.schedules import Schedule
from diptych.pretrain.diffusion.targets import Predict

LATENT = Schedule(shape="scaled_linear", beta_start=0.00085, beta_end=0.012)
PREDICTIONS: list[tuple[Predict, str]] = [
    ("epsilon", "epsilon"),
    ("v", "v_prediction"),
    ("x0", "sample"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small tensors are slower with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, rows_B: Tensor) -> Tensor:
    """Any smooth function of both that is no denoiser at all."""
    t = targets.per_row(rows_B, x) / 1000
    return torch.tanh(x * (1 - 0.5 * t)) + 0.3 * torch.sin(3 * t + x.roll(1, -1))


def theirs(cls: Any, schedule: Schedule, kind: str, **options: Any) -> Any:
    """A scheduler of diffusers with our table in float64: what is compared is its arithmetic."""
    made = cls(
        schedule.steps,
        schedule.beta_start,
        schedule.beta_end,
        schedule.shape,
        clip_sample=False,
        prediction_type=kind,
        **options,
    )
    table = schedule.alphas_bar()
    made.alphas_cumprod, made.betas = table, schedule.betas()
    made.one = torch.tensor(1.0, dtype=torch.float64)
    final = made.one if options.get("set_alpha_to_one", True) else table[0]
    made.final_alpha_cumprod = made.initial_alpha_cumprod = final
    return made


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 7, 10, 50, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_sub_sequences_are_those_of_diffusers(spacing: Spacing, steps: int, offset: int) -> None:
    if steps == 1000 and offset and spacing == "leading":
        with pytest.raises(RecipeError, match="offset 1 reach timestep 1000 of 1000"):
            samplers.times(1000, steps, spacing, offset)
        return
    other = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    other.set_timesteps(steps)
    expected = other.timesteps.tolist()
    if spacing == "linspace" and steps == 1:
        expected = [0]
    assert samplers.times(1000, steps, spacing, offset) == expected


def test_the_lectures_script_takes_these_steps() -> None:
    """CompVis: arange(0, T, T // S) + 1."""
    assert samplers.times(1000, 200, "leading", 1)[::-1] == [*range(1, 1001, 5)]


def test_steps_that_there_are_not_are_refused() -> None:
    for steps in (0, 1001):
        with pytest.raises(RecipeError, match="knows 1000"):
            samplers.times(1000, steps)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize(
    ("spacing", "offset", "steps"), [("leading", 0, 10), ("leading", 1, 10), ("trailing", 0, 10)]
)
@pytest.mark.parametrize(("predict", "kind"), PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_is_that_of_diffusers(
    predict: Predict, kind: str, spacing: Spacing, offset: int, steps: int, final: bool,
    zero: bool, eta: float,
) -> None:  # fmt: skip
    if zero and predict == "epsilon" and spacing == "trailing":
        return  # an epsilon says nothing of the image in pure noise
    schedule = LATENT.model_copy(update={"zero_terminal_snr": zero})
    table = schedule.alphas_bar()
    other = theirs(
        DDIMScheduler, schedule, kind, set_alpha_to_one=final, timestep_spacing=spacing,
        steps_offset=offset, rescale_betas_zero_snr=zero,
    )  # fmt: skip
    other.set_timesteps(steps)
    x, drawn = double(2, 3, 4, 4), {t: double(2, 3, 4, 4, seed=t + 1) for t in range(1000)}
    expected = x
    for t in other.timesteps.tolist():
        said = network(expected, torch.full((2,), t))
        noise = drawn[t] if eta else None
        expected = other.step(said, t, expected, eta=eta, variance_noise=noise).prev_sample
    found = samplers.ddim(
        Denoiser(network, table, predict),
        x,
        samplers.times(1000, steps, spacing, offset),
        eta=eta,
        normal=drawn.__getitem__,
        final=1.0 if final else float(table[0]),
    )
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)


def test_a_step_between_any_two_timesteps_is_that_of_diffusers() -> None:
    """With diffusers' own next timestep, t - T // S, also where another one is next in ours."""
    other = theirs(DDIMScheduler, LATENT, "epsilon", timestep_spacing="linspace")
    other.set_timesteps(7)
    x, said, noise = double(2, 5), double(2, 5, seed=1), double(2, 5, seed=2)
    table = LATENT.alphas_bar()
    for t in other.timesteps.tolist():
        a, before = float(table[t]), t - 1000 // 7
        a_next = float(table[before]) if before >= 0 else 1.0
        parts = targets.parts("epsilon", said, x, table[t].expand(2))
        found = samplers.ddim_step(x, parts, a, a_next, noise, eta=0.5)
        expected = other.step(said, t, x, eta=0.5, variance_noise=noise).prev_sample
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize(("predict", "kind"), PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_that_of_diffusers(
    predict: Predict, kind: str, spacing: Spacing, variance: samplers.Variance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = theirs(
        DDPMScheduler, LATENT, kind, timestep_spacing=spacing, variance_type=f"fixed_{variance}"
    )
    other.set_timesteps(12)
    x, drawn = double(2, 3, 4, 4), {t: double(2, 3, 4, 4, seed=t + 1) for t in range(1000)}
    # diffusers adds the large variance even to the finished image, unless it ends at t = 0
    drawn[min(other.timesteps.tolist())] = torch.zeros_like(x)
    expected, now = x, 0
    here = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(here, lambda *args, **options: drawn[now])
    for now in other.timesteps.tolist():
        said = network(expected, torch.full((2,), now))
        expected = other.step(said, now, expected).prev_sample
    found = samplers.ddpm(
        Denoiser(network, LATENT.alphas_bar(), predict),
        x,
        drawn.__getitem__,
        taken=samplers.times(1000, 12, spacing),
        variance=variance,
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)


def test_the_lectures_line_4_is_the_posterior_of_the_predicted_image() -> None:
    """x_(t-1) = 1 / sqrt(alpha) (x_t - (1 - alpha) / sqrt(1 - alpha_bar) epsilon) + sigma z."""
    table, x, noise = LATENT.alphas_bar(), double(3, 5), double(3, 5, seed=1)
    z = double(3, 5, seed=2)
    for t in (999, 500, 1):
        a, a_next = float(table[t]), float(table[t - 1])
        alpha = a / a_next
        mean = (x - (1 - alpha) / (1 - a) ** 0.5 * noise) / alpha**0.5
        x0 = targets.parts("epsilon", noise, x, table[t].expand(3)).x0
        found = samplers.ddpm_step(x, x0, a, a_next, z, variance="large")
        torch.testing.assert_close(found, mean + (1 - alpha) ** 0.5 * z)


def test_ddim_with_eta_1_between_neighbours_is_ddpm() -> None:
    table, x, said, z = (
        LATENT.alphas_bar(),
        double(3, 5),
        double(3, 5, seed=1),
        double(3, 5, seed=2),
    )
    for t in (999, 500, 1):
        a, a_next = float(table[t]), float(table[t - 1])
        parts = targets.parts("epsilon", said, x, table[t].expand(3))
        ancestral = samplers.ddpm_step(x, parts.x0, a, a_next, z)
        found = samplers.ddim_step(x, parts, a, a_next, z, eta=1)
        torch.testing.assert_close(found, ancestral)


@pytest.mark.parametrize(("predict", "kind"), PREDICTIONS)
@pytest.mark.parametrize("final", [True, False])
def test_inversion_is_that_of_diffusers(predict: Predict, kind: str, final: bool) -> None:
    table, x0 = LATENT.alphas_bar(), double(2, 3, 4, 4)
    denoiser = Denoiser(network, table, predict)
    if final and predict == "x0":
        with pytest.raises(ValueError, match="x0 prediction"):
            samplers.ddim_inverse(denoiser, x0, samplers.times(1000, 10))
        return
    other = theirs(DDIMInverseScheduler, LATENT, kind, set_alpha_to_one=final)
    other.set_timesteps(10)
    expected = x0
    for t in other.timesteps.tolist():
        said = network(expected, torch.full((2,), t))
        expected = other.step(said, t, expected).prev_sample
    taken = samplers.times(1000, 10)
    found = samplers.ddim_inverse(denoiser, x0, taken, final=1.0 if final else float(table[0]))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler",
             "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler",
             "UniPCMultistepScheduler", "CogVideoXDDIMScheduler"],
)  # fmt: skip
def test_any_scheduler_of_diffusers_samples_the_gaussian(name: str) -> None:
    model, mean, covariance = gaussian(LATENT)
    made = samplers.scheduler(name, LATENT, "epsilon", timestep_spacing="trailing")
    steps = 200 if name == "DDPMScheduler" else 50
    x_T = double(4000, 2).float()
    found = samplers.run_scheduler(
        made, model, x_T, steps, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found.mean(0).double(), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(found.T.cov().double(), covariance, atol=0.15, rtol=0)


def test_a_scheduler_that_there_is_not_is_named() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'DDIMScheduler'\?"):
        samplers.scheduler("DDIMSchedular", LATENT, "v")
    with pytest.raises(RecipeError, match="takes no noise schedule"):
        samplers.scheduler("FlowMatchEulerDiscreteScheduler", LATENT, "v")
    with pytest.raises(RecipeError, match="IPNDMScheduler takes no noise schedule with what"):
        samplers.scheduler("IPNDMScheduler", LATENT, "v")


@pytest.mark.parametrize("name", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_what_ends_at_noise_is_no_sampler(name: str) -> None:
    with pytest.raises(RecipeError, match="scheduler of diffusers"):
        samplers.scheduler(name, LATENT, "epsilon")


def test_a_scheduler_that_steps_otherwise_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"CogVideoXDPMScheduler at timestep .*timestep_back"):
        drawn_with(Sampling(steps=5, sampler="CogVideoXDPMScheduler"), LATENT, "v")


def test_pndm_is_the_plms_of_latent_diffusion() -> None:
    """Pseudo linear multistep (Liu et al. 2022), the first step with a second look (CompVis)."""
    table, x, seen = LATENT.alphas_bar(), double(2, 4), list[Tensor]()
    made = samplers.scheduler("PNDMScheduler", LATENT, "epsilon")
    found = samplers.run_scheduler(made, network, x, 10)
    taken = [*samplers.times(1000, 10, "leading", 1), 1]
    for t, after in pairwise(taken):
        a, a_next = float(table[t]), float(table[after if t > 1 else 0])

        def nearer(noise: Tensor, a: float = a, a_next: float = a_next, x: Tensor = x) -> Tensor:
            x0 = targets.parts("epsilon", noise, x, torch.tensor([a, a]).double()).x0
            return a_next**0.5 * x0 + (1 - a_next) ** 0.5 * noise

        noise = network(x, torch.full((2,), t))
        seen = [noise, *seen][:4]
        if len(seen) == 1:
            mixed = (noise + network(nearer(noise), torch.full((2,), after))) / 2
        else:
            shares = [[3, -1], [23, -16, 5], [55, -59, 37, -9]][len(seen) - 2]
            mixed = torch.stack([n * e for n, e in zip(shares, seen, strict=True)]).sum(0)
            mixed = mixed / sum(shares)
        x = nearer(mixed)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-5)  # their table is of 32 bits


def drawn_with(how: Sampling, schedule: Schedule, predict: Predict) -> tuple[Tensor, list[float]]:
    """(what is drawn with a network that halves, the timesteps that it was asked for)."""
    asked = list[float]()

    def ask(x: Tensor, times_B: Tensor) -> Tensor:
        asked.append(float(times_B[0]))
        return x / 2

    x_T = 3 * double(2, 1, 4, 4).float()
    return sampling.draw_ddpm(ask, x_T, how, lambda _: x_T, schedule, predict), asked


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_a_scheduler_of_diffusers_hears_spacing_threshold_and_clip() -> None:
    limits: list[dict[str, Any]] = [{}, {"threshold": 0.8}, {"clip": True}]
    for limit in limits:
        found = [
            drawn_with(Sampling(steps=5, sampler=name, spacing="trailing", **limit), LATENT, "v")
            for name in ("ddim", "DDIMScheduler")
        ]
        assert found[0][1] == found[1][1]
        torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for how, said in (
        (Sampling(sampler="LCMScheduler", spacing="leading"), "no timestep_spacing: leave --spac"),
        (Sampling(sampler="LMSDiscreteScheduler", threshold=0.9), "no thresholding: leave --thr"),
        (Sampling(sampler="UniPCMultistepScheduler", clip=True), "has no clip_sample: leave clip"),
    ):
        with pytest.raises(RecipeError, match=said):
            drawn_with(how, LATENT, "epsilon")


def test_what_schedulers_of_diffusers_take_they_look_at() -> None:
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    for name in names:
        made = getattr(diffusers, name)
        words = inspect.signature(made).parameters
        if "trained_betas" not in words or "prediction_type" not in words:
            continue
        source = inspect.getsource(made)
        asked = ("timestep_spacing", "thresholding", "clip_sample")
        unread = {w for w in asked if w in words and f"config.{w}" not in source}
        assert unread == set(samplers.UNREAD.get(name, ())), name


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize("spacing", [None, "linspace"])
def test_a_scheduler_of_diffusers_begins_at_noise_alone(spacing: Spacing | None) -> None:
    schedule = Schedule(zero_terminal_snr=True)
    for name in ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"):
        how = Sampling(steps=5, sampler=name, spacing=spacing)
        found, asked = drawn_with(how, schedule, "v")
        assert asked[0] == 999
        assert found.isfinite().all()
    plms = Sampling(steps=5, sampler="PNDMScheduler", spacing=spacing and "leading")
    assert drawn_with(plms, schedule, "v")[0].isfinite().all()  # it knows no noise alone


@pytest.mark.filterwarnings("ignore:The integral is probably divergent")
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverSinglestepScheduler",
             "DEISMultistepScheduler", "KDPM2DiscreteScheduler", "SASolverScheduler"],
)  # fmt: skip
def test_a_scheduler_that_draws_nothing_finite_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"{name} at timestep .* not finite.*DPMSolverMulti"):
        drawn_with(Sampling(steps=5, sampler=name), Schedule(zero_terminal_snr=True), "v")


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # theirs
@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"]
)
def test_a_scheduler_that_takes_no_x0_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} at timestep .*prediction_type.*own sampler"):
        drawn_with(Sampling(steps=5, sampler=name), LATENT, "x0")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_a_flow_hears_or_refuses_what_a_sampler_is_told() -> None:
    x_T = 3 * double(2, 1, 4, 4).float()

    def drawn(**values: Any) -> Tensor:
        how = Sampling(steps=5, **values)
        return sampling.draw_flow(lambda x, _: x / 2, x_T, how, lambda _: x_T, 1.0)

    cases: list[tuple[dict[str, Any], str]] = [
        ({"spacing": "trailing"}, "a flow has none"),
        ({"sampler": "FlowMatchEulerDiscreteScheduler", "threshold": 0.9}, "no thresholding"),
        ({"sampler": "FlowMatchEulerDiscreteScheduler", "eta": 1.0}, "has no eta"),
        ({"sampler": "DEISMultistepScheduler"}, "leaves a share of .* of the noise"),
    ]
    for values, said in cases:
        with pytest.raises(RecipeError, match=said):
            drawn(**values)
    solver = "DPMSolverMultistepScheduler"
    assert not torch.equal(drawn(sampler=solver), drawn(sampler=solver, threshold=0.8))


def gaussian(schedule: Schedule) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """(the exact epsilon of a Gaussian, its mean, its covariance): x_t is a Gaussian too."""
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[0.8, 0.3], [0.3, 0.4]], dtype=torch.float64)
    table = schedule.alphas_bar()

    def epsilon(x: Tensor, rows_B: Tensor) -> Tensor:
        a = table[rows_B[0].long()]
        spread = a * covariance + (1 - a) * torch.eye(2, dtype=torch.float64)
        score = -(x.double() - a.sqrt() * mean) @ torch.linalg.inv(spread)
        return (-(1 - a).sqrt() * score).to(x.dtype)

    return epsilon, mean, covariance


def test_algorithm_1_training_finds_the_score() -> None:
    """Least squares of |epsilon - A x_t - b|^2 is the closed form, within 0.06 (100,000 rows)."""
    schedule = Schedule()
    exact, mean, covariance = gaussian(schedule)
    table, rows = schedule.alphas_bar(), 100_000
    x0 = mean + double(rows, 2) @ torch.linalg.cholesky(covariance).T
    noise, probe = double(rows, 2, seed=1), double(50, 2, seed=2)
    for t in (20, 300, 900):
        x_t = targets.add_noise(x0, noise, table[t].expand(rows))
        ones = torch.ones(rows, 1, dtype=torch.float64)
        learned = torch.linalg.lstsq(torch.cat([x_t, ones], 1), noise).solution
        found = torch.cat([probe, ones[:50]], 1) @ learned
        torch.testing.assert_close(found, exact(probe, torch.tensor([t])), atol=0.06, rtol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_algorithm_2_sampling_gives_the_gaussian(variance: samplers.Variance) -> None:
    """All 1000 steps on 5,000 rows: mean and covariance within 0.04 (sampling error: 0.013)."""
    schedule = Schedule()
    model, mean, covariance = gaussian(schedule)
    generator = torch.Generator().manual_seed(1)
    found = samplers.ddpm(
        Denoiser(model, schedule.alphas_bar(), "epsilon"),
        double(5000, 2),
        lambda t: torch.randn(5000, 2, dtype=torch.float64, generator=generator),
        variance=variance,
    )
    torch.testing.assert_close(found.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(found.T.cov(), covariance, atol=0.04, rtol=0)


def test_ddim_gives_the_gaussian_in_a_twentieth_of_the_steps_and_comes_back() -> None:
    schedule = Schedule()
    model, mean, covariance = gaussian(schedule)
    denoiser = Denoiser(model, schedule.alphas_bar(), "epsilon")
    x_T, taken = double(5000, 2), samplers.times(1000, 50, "trailing")
    found = samplers.ddim(denoiser, x_T, taken)
    torch.testing.assert_close(found.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(found.T.cov(), covariance, atol=0.06, rtol=0)
    errors = [
        float((samplers.ddim_inverse(denoiser, samplers.ddim(denoiser, x_T, t), t) - x_T).std())
        for t in (samplers.times(1000, steps, "trailing") for steps in (20, 100, 500))
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.02
    with pytest.raises(ValueError, match="pass `normal`"):
        samplers.ddim(denoiser, x_T, taken, eta=1.0)


def two_classes(schedule: Schedule, way: Tensor) -> tuple[Any, Any]:
    """Epsilon of an even mixture of N(way, 0.25 I) and N(-way, 0.25 I); its exact classifier."""
    table = schedule.alphas_bar()

    def logits(x: Tensor, rows_B: Tensor) -> Tensor:
        a = table[rows_B[0]]
        pull = 2 * a.sqrt() / (0.25 * a + 1 - a) * (x @ way)
        return torch.stack([pull / 2, -pull / 2], 1)

    def epsilon(x: Tensor, rows_B: Tensor) -> Tensor:
        a = table[rows_B[0]]
        odds = logits(x, rows_B).softmax(1)
        middle = a.sqrt() * (odds[:, :1] - odds[:, 1:]) * way
        return (1 - a).sqrt() / (0.25 * a + 1 - a) * (x - middle)

    return epsilon, logits


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_algorithm_1_guidance_gives_the_class(sampler: str) -> None:
    """With the exact classifier and s = 1 a mixture becomes one of its two Gaussians."""
    schedule, way = Schedule(), torch.tensor([1.0, 0.5], dtype=torch.float64)
    epsilon, logits = two_classes(schedule, way)
    table, rows = schedule.alphas_bar(), 2000
    classes_B = torch.ones(rows, dtype=torch.long)
    gradient = guidance.classifier_gradient(logits, classes_B, 1.0)
    x_T, generator = double(rows, 2), torch.Generator().manual_seed(1)

    def drawn(t: int) -> Tensor:
        return torch.randn(rows, 2, dtype=torch.float64, generator=generator)

    if sampler == "ddpm":
        denoiser = Denoiser(epsilon, table, "epsilon")
        free = samplers.ddpm(denoiser, x_T, drawn, taken=samplers.times(1000, 250))
        assert float(free.mean(0).norm()) < 0.1
        found = samplers.ddpm(denoiser, x_T, drawn, gradient=gradient)
    else:
        steered = guidance.classifier_guided(epsilon, gradient, table, "epsilon")
        taken = samplers.times(1000, 100, "trailing")
        found = samplers.ddim(Denoiser(steered, table, "epsilon"), x_T, taken)
    torch.testing.assert_close(found.mean(0), -way, atol=0.06, rtol=0)
    expected = 0.25 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(found.T.cov(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("predict", ["epsilon", "v", "x0"])
def test_a_guided_classifier_is_the_same_for_every_prediction(predict: Predict) -> None:
    table, x, rows_B = LATENT.alphas_bar(), double(4, 2), torch.full((4,), 400)
    epsilon, logits = two_classes(LATENT, torch.tensor([1.0, 0.5], dtype=torch.float64))
    gradient = guidance.classifier_gradient(logits, torch.tensor([0, 1, 0, 1]), 2.5)
    plain = targets.parts("epsilon", epsilon(x, rows_B), x, table[rows_B])

    def model(x: Tensor, rows_B: Tensor) -> Tensor:
        return targets.target(predict, plain.x0, plain.noise, table[rows_B])

    steered = guidance.classifier_guided(model, gradient, table, predict)
    found = Denoiser(steered, table, predict)(x, 400)
    moved = plain.noise - (1 - table[400]).sqrt() * gradient(x, rows_B)
    torch.testing.assert_close(found.noise, moved)
    expected = targets.parts("epsilon", moved, x, table[rows_B]).x0
    torch.testing.assert_close(found.x0, expected)


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 4.0])
def test_the_two_conventions_of_guidance_are_one(w: float) -> None:
    with_it, without = double(2, 3), double(2, 3, seed=1)
    one, two = guidance.guide(with_it, without, w), guidance.guide_scale(with_it, without, 1 + w)
    torch.testing.assert_close(one, two, atol=1e-14, rtol=1e-14)


def test_classifier_free_guidance_asks_once_for_both() -> None:
    asked: list[int] = []

    def model(x: Tensor, rows_B: Tensor, context: Tensor) -> Tensor:
        asked.append(len(x))
        return network(x, rows_B) * context

    x, rows_B, context, empty = (
        double(2, 3),
        torch.full((2,), 7),
        double(2, 3, seed=1),
        double(2, 3),
    )
    guided = guidance.classifier_free(model, context, empty, 5.0)(x, rows_B)
    assert asked == [4]
    expected = guidance.guide(model(x, rows_B, context), model(x, rows_B, empty), 4.0)
    torch.testing.assert_close(guided, expected)
    asked.clear()
    alone = guidance.classifier_free(model, context, empty, 1.0)(x, rows_B)
    assert asked == [2]
    torch.testing.assert_close(alone, model(x, rows_B, context))


def test_dynamic_thresholding_is_that_of_diffusers() -> None:
    x0 = double(4, 3, 8, 8) * torch.tensor([0.2, 1.0, 3.0, 9.0]).double()[:, None, None, None]
    other = DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1000.0
    )
    found = guidance.dynamic_threshold(x0, 0.95)
    torch.testing.assert_close(found, other._threshold_sample(x0), atol=1e-12, rtol=0)
    assert float(found.abs().max()) <= 1
    torch.testing.assert_close(found[0], x0[0])  # an image within [-1, 1] is left alone
    assert torch.equal(guidance.dynamic_threshold(x0, 0.95, most=1.0), x0.clamp(-1, 1))
    half = guidance.dynamic_threshold(x0.bfloat16())
    assert half.dtype == torch.bfloat16


def test_what_is_predicted_is_limited_at_every_step() -> None:
    table, x = LATENT.alphas_bar(), 5 * double(2, 3, 4, 4)
    denoiser = Denoiser(network, table, "v", limit=guidance.dynamic_threshold)
    other = theirs(
        DDIMScheduler, LATENT, "v_prediction", thresholding=True, sample_max_value=1000.0
    )
    other.set_timesteps(5)
    expected = x
    for t in other.timesteps.tolist():
        said = network(expected, torch.full((2,), t))
        expected = other.step(said, t, expected).prev_sample
    found = samplers.ddim(denoiser, x, samplers.times(1000, 5))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-9)
