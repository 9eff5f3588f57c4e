"""From noise to images and back: ancestral DDPM, DDIM, its inversion, diffusers' schedulers.

A sampler is a function of a denoiser, a start and the normal numbers to use. Timesteps count from
0; a sub-sequence of them is listed in the order of sampling, noise first. x of shape (B, ...).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...config import unknown
from ...errors import RecipeError
from .schedules import Schedule
from .targets import Parts, Predict, parts

Spacing = Literal["leading", "trailing", "linspace"]
Variance = Literal["small", "large"]
Model = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), timesteps (B,)) -> what the network says, of the shape of x_t."""
Gradient = Callable[[Tensor, Tensor], Tensor]
"""(x_t, timesteps (B,)) -> the gradient of a logarithm of a probability, of the shape of x_t."""
Normal = Callable[[int], Tensor]
"""Normal numbers of the shape of x for timestep t."""
UNREAD = {
    "LCMScheduler": ("timestep_spacing",),
    "TCDScheduler": ("timestep_spacing", "thresholding", "clip_sample"),
}
"""What schedulers of diffusers take and never look at."""
_ASKED = {"timestep_spacing": "--spacing", "thresholding": "--threshold", "clip_sample": "clip"}


@dataclass(frozen=True)
class Denoiser:
    """A network that is asked for images and noise rather than for what it predicts."""

    model: Model
    alphas_bar_T: Tensor
    """Of the schedule that it was trained with."""
    predict: Predict
    limit: Callable[[Tensor], Tensor] | None = None
    """What is done to each predicted image, such as `guidance.dynamic_threshold`."""

    def __call__(self, x: Tensor, t: int, a: float | None = None) -> Parts:
        """Image and noise of x, with the network asked for timestep t.

        Args:
            x: noised images.
            t: what the network is told.
            a: alphas_bar of x, where that is not the one of t.
        """
        rows_B = torch.full((len(x),), t, device=x.device)
        level = float(self.alphas_bar_T[t]) if a is None else a
        a_B = torch.full((len(x),), level, dtype=torch.float64, device=x.device)
        found = parts(self.predict, self.model(x, rows_B), x, a_B)
        return found if self.limit is None else found._replace(x0=self.limit(found.x0))

    def steps(self, taken: Sequence[int], final: float) -> list[tuple[int, float, float]]:
        """(timestep, alphas_bar there, alphas_bar after its step), noise first.

        A step ends at the next timestep that is taken, the last one at `final`: 1 is diffusers'
        `set_alpha_to_one`; CompVis and Stable Diffusion have alphas_bar_T[0]. Where the steps do
        not divide T, diffusers' DDIM goes to t - T // S though another timestep is next; this
        follows the paper (Song et al. 2021) and goes to the next.
        """
        levels = [float(self.alphas_bar_T[t]) for t in taken]
        return list(zip(taken, levels, [*levels[1:], final], strict=True))


def times(total: int, steps: int, spacing: Spacing = "leading", offset: int = 0) -> list[int]:
    """A sub-sequence of `steps` of `total` timesteps, noise first, as diffusers spaces them.

    `leading` with offset 1 is CompVis' arange(0, T, T // S) + 1, the lecture's own script, which
    never sees the last timestep; `trailing` begins at it, which zero terminal SNR needs;
    `linspace` has both ends (table 2 of Lin et al. 2024).

    Raises:
        RecipeError: fewer than one step, more than the model has, or an offset out of range.
    """
    if not 1 <= steps <= total:
        raise RecipeError(f"{steps} sampling steps: the model knows {total}. Ask for 1 to {total}.")
    if spacing == "linspace":
        gap = (total - 1) / max(1, steps - 1)
        found = [round(i * gap) for i in reversed(range(steps))]
    elif spacing == "trailing":
        found = [round(total - i * total / steps) - 1 for i in range(steps)]
    else:
        found = [i * (total // steps) + offset for i in reversed(range(steps))]
    if not 0 <= found[-1] <= found[0] < total:
        raise RecipeError(
            f"{steps} steps with offset {offset} reach timestep {found[0]} of {total}. "
            "Lower the offset or the steps."
        )
    return found


def ddpm_step(
    x_t: Tensor,
    x0: Tensor,
    a: float,
    a_next: float,
    normal: Tensor,
    *,
    variance: Variance = "small",
    gradient: Tensor | None = None,
) -> Tensor:
    """One ancestral step from alphas_bar `a` to the larger `a_next` (Ho et al. 2020, eq. 7).

    Args:
        x_t: where the step starts.
        x0: the image predicted from it.
        a: alphas_bar of x_t.
        a_next: alphas_bar of what is returned.
        normal: normal numbers; unused where the step ends at an image.
        variance: `small` is the posterior's, `large` is beta_t.
        gradient: of log p(y | x_t), already times its scale: the mean moves by variance x gradient
            (the lecture's Algorithm 1, Dhariwal and Nichol 2021).
    """
    alpha = a / a_next
    mean = (a_next**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - a_next) * x_t) / (1 - a)
    spread = 1 - alpha if variance == "large" else (1 - a_next) / (1 - a) * (1 - alpha)
    if gradient is not None:
        mean = mean + spread * gradient
    return mean if a_next == 1 else mean + spread**0.5 * normal


def ddim_step(
    x_t: Tensor, found: Parts, a: float, a_next: float, normal: Tensor | None, *, eta: float = 0.0
) -> Tensor:
    """One DDIM step from alphas_bar `a` to `a_next` (Song et al. 2021, eq. 12 and 16).

    With eta 0 it draws nothing, and `a_next` may also be smaller: that inverts. With eta 1 between
    neighbouring timesteps it is the ancestral step of small variance.
    """
    variance = eta**2 * max(0.0, (1 - a_next) / (1 - a) * (1 - a / a_next)) if eta else 0.0
    moved = a_next**0.5 * found.x0 + max(0.0, 1 - a_next - variance) ** 0.5 * found.noise
    return moved if normal is None or not variance else moved + variance**0.5 * normal


def ddpm(
    denoiser: Denoiser,
    x_T: Tensor,
    normal: Normal,
    *,
    taken: Sequence[int] | None = None,
    variance: Variance = "small",
    gradient: Gradient | None = None,
) -> Tensor:
    """Ancestral sampling, the lecture's Algorithm 2; with a gradient, its classifier guidance.

    Args:
        denoiser: the network.
        x_T: noise to start from.
        normal: normal numbers for each timestep.
        taken: a sub-sequence of timesteps, noise first; all by default.
        variance: see `ddpm_step`.
        gradient: of s log p(y | x_t), the scale s included.
    """
    taken = range(len(denoiser.alphas_bar_T) - 1, -1, -1) if taken is None else taken
    x = x_T
    for t, a, a_next in denoiser.steps(taken, 1.0):
        rows_B = torch.full((len(x),), t, device=x.device)
        pull = None if gradient is None else gradient(x, rows_B)
        x0 = denoiser(x, t).x0
        x = ddpm_step(x, x0, a, a_next, normal(t), variance=variance, gradient=pull)
    return x


def ddim(
    denoiser: Denoiser,
    x_T: Tensor,
    taken: Sequence[int],
    *,
    eta: float = 0.0,
    normal: Normal | None = None,
    final: float = 1.0,
) -> Tensor:
    """DDIM over a sub-sequence of timesteps, noise first. On `final` see `Denoiser.steps`.

    Raises:
        ValueError: `eta` above 0 without normal numbers.
    """
    if eta and normal is None:
        raise ValueError(f"eta {eta} draws noise at each step; pass `normal`.")
    x = x_T
    for t, a, a_next in denoiser.steps(taken, final):
        drawn = normal(t) if eta and normal else None
        x = ddim_step(x, denoiser(x, t), a, a_next, drawn, eta=eta)
    return x


def ddim_inverse(
    denoiser: Denoiser,
    x0: Tensor,
    taken: Sequence[int],
    *,
    final: float = 1.0,
    refine: int = 0,
) -> Tensor:
    """The noise from which `ddim` with eta 0 and the same arguments makes about x0.

    Each step is undone with what the network says at its nearer end, told the timestep of the
    farther one, as in diffusers' inverse scheduler; the error falls with the length of the steps.
    With `refine` it is asked so often again, at the farther end that was found: fixed-point
    iteration towards the exact inverse of the step (Pan et al. 2023), where that contracts.

    Raises:
        ValueError: the network predicts x0, which says nothing of the noise of a clean image.
    """
    if denoiser.predict == "x0" and final == 1:
        raise ValueError("an x0 prediction is inverted from final=alphas_bar_T[0], not from 1.")
    x = x0
    for t, a, a_next in reversed(denoiser.steps(taken, final)):
        nearer, x = x, ddim_step(x, denoiser(x, t, a_next), a_next, a, None)
        for _ in range(refine):
            noise = denoiser(x, t).noise
            x = undone(nearer, noise, a, a_next)
    return x


def undone(nearer: Tensor, noise: Tensor, a: float, a_next: float) -> Tensor:
    """Where a DDIM step of eta 0 that saw this noise came from, to end at `nearer`.

    Args:
        nearer: the cleaner end of the step.
        noise: what the network saw at its noisier end.
        a: alphas_bar of the noisier end.
        a_next: alphas_bar of the cleaner end.
    """
    x0 = (nearer - (1 - a_next) ** 0.5 * noise) / a_next**0.5
    return a**0.5 * x0 + (1 - a) ** 0.5 * noise


def scheduler(name: str, schedule: Schedule, predict: Predict, **options: Any) -> Any:
    """A scheduler of diffusers by its class name, on our schedule.

    Raises:
        RecipeError: diffusers has no such scheduler, or not with these options.
    """
    made = _scheduler_class(name)
    predictions = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
    alphas_bar_T = schedule.alphas_bar()
    ratios_T = torch.cat([alphas_bar_T[:1], alphas_bar_T[1:] / alphas_bar_T[:-1]])
    settings = {
        "num_train_timesteps": schedule.steps,
        "trained_betas": (1 - ratios_T).tolist(),
        "prediction_type": predictions[predict],
        "clip_sample": False,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,  # again changes nothing
        "snr_shift_scale": 1.0,  # CogVideoX's own would make another table of the betas
    }
    if schedule.zero_terminal_snr and _takes(made, "rescale_betas_zero_snr"):
        settings["timestep_spacing"] = "trailing"  # others know no timestep of noise alone
    if name == "PNDMScheduler":  # CompVis' PLMS, and not with Runge-Kutta's steps before it
        settings |= {"skip_prk_steps": True, "steps_offset": 1}
    if not _takes(made, "trained_betas") or not _takes(made, "prediction_type"):  # IPNDM's, RePaint
        raise RecipeError(
            f"diffusers' {name} takes no noise schedule with what is predicted on it. "
            "Name another, such as DDIMScheduler."
        )
    return _made(made, settings, options, name)


def flow_scheduler(name: str, shift: float = 1.0, **options: Any) -> Any:
    """A scheduler of diffusers for rectified flows, by its class name.

    Raises:
        RecipeError: diffusers has no such scheduler, it knows no flows, or not these options.
    """
    made = _scheduler_class(name)
    if name.startswith("FlowMatch"):
        settings = {"shift": shift}
    elif _takes(made, "use_flow_sigmas"):
        settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        settings |= {"flow_shift": shift}
    else:
        raise RecipeError(
            f"diffusers' {name} knows no rectified flows. Name FlowMatchEulerDiscreteScheduler "
            "or FlowMatchHeunDiscreteScheduler."
        )
    return _made(made, {"num_train_timesteps": 1000, **settings}, options, name)


def run_scheduler(
    made: Any,
    model: Model,
    x_T: Tensor,
    steps: int,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    eta: float | None = None,
) -> Tensor:
    """Samples with a scheduler of diffusers; x_T has unit variance and is scaled as it wants.

    `generator` may be one for each row; `eta` is for schedulers that have one.

    Raises:
        RecipeError: it takes no `eta` above 0, not as few or as many steps, or not such a model.
    """
    try:
        made.set_timesteps(steps, device=x_T.device)
    except (ValueError, IndexError) as err:
        raise RecipeError(f"{type(made).__name__} with {steps} steps: {err}") from err
    if made.config.get("use_flow_sigmas") and (left := float(made.sigmas[-1])) > 0:
        raise RecipeError(
            f"diffusers' {type(made).__name__} leaves a share of {left:.2g} of the noise in what "
            f"it draws of a flow in {steps} steps. Name DPMSolverMultistepScheduler."
        )
    x = x_T * getattr(made, "init_noise_sigma", 1.0)
    options: dict[str, Any] = {"generator": generator} if _takes(made.step, "generator") else {}
    if eta:
        if not _takes(made.step, "eta"):
            raise RecipeError(f"{type(made).__name__} has no eta; leave --eta at 0.")
        options["eta"] = eta
    for t in made.timesteps:
        seen = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
        x = _stepped(made, model(seen, t.expand(len(x))), t, x, options)
    return x


def _stepped(made: Any, said: Tensor, t: Tensor, x: Tensor, options: dict[str, Any]) -> Tensor:
    """x after a step of a scheduler, which only now says what it cannot, or gives NaNs for it."""
    try:
        x = made.step(said, t, x, **options).prev_sample
    except (ValueError, NotImplementedError, TypeError, LookupError) as err:
        raise _unfit(made, t, f": {err}.") from err
    if not bool(x.isfinite().all()):
        raise _unfit(
            made,
            t,
            " gives numbers that are not finite: it does not know this schedule, such as one of "
            "zero terminal SNR, or the weights are broken.",
        )
    return x


def _unfit(made: Any, t: Tensor, why: str) -> RecipeError:
    return RecipeError(
        f"diffusers' {type(made).__name__} at timestep {float(t):g}{why} Draw with the model's own "
        "sampler, or with DPMSolverMultistepScheduler."
    )


def _scheduler_class(name: str) -> Any:
    import diffusers  # for seconds

    named = {n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")}
    named = {n for n in named if not n.endswith("InverseScheduler")}  # they end at noise
    if name not in named:
        raise unknown(name, sorted(named), "scheduler of diffusers")
    return getattr(diffusers, name)


def _made(made: Any, settings: dict[str, Any], options: dict[str, Any], name: str) -> Any:
    """A scheduler with those of the settings that it takes, and with all of the options."""
    for option in options:
        if not _takes(made, option) or option in UNREAD.get(name, ()):
            raise RecipeError(
                f"diffusers' {name} has no {option}: leave {_ASKED.get(option, option)}, or name "
                "another, such as DDIMScheduler."
            )
    taken = {key: value for key, value in settings.items() if _takes(made, key)} | options
    try:
        return made.from_config(taken)
    except (TypeError, ValueError, NotImplementedError) as err:
        raise RecipeError(f"diffusers' {name} cannot be made: {err}") from err


def _takes(function: Any, name: str) -> bool:
    return name in inspect.signature(function).parameters
