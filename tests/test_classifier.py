"""Classifiers of noised images, trained by the same loop, and what they lead a denoiser to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.config import plain
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.classifier import Classifier, open_classifier
from diptych.finetune.parts import KINDS
from diptych.finetune.recipes import find
from diptych.finetune.sample import painter
from diptych.pretrain.diffusion.guidance import classifier_gradient
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.diffusion.schedules import Schedule
from diptych.pretrain.diffusion.targets import Predict
from diptych.pretrain.objectives import DenoisingDiffusion, RectifiedFlow
from diptych.pretrain.optim import adamw
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Rows = Callable[..., Batch]
Keep = Callable[..., RunDir]
MODELS = {
    "noised_class": {
        "kind": "noisy_classifier", "channels": [16, 16], "groups": 8, "heads": 2,
        "classes": ["red", "blue"],
    },
    "ddpm": {"kind": "unet", "channels": [16, 16], "groups": 8, "heads": 2, "width": 32},
}  # fmt: skip
MODELS["flow"] = MODELS["ddpm"]


def recipe(objective: str, *settings: str) -> Run:
    values = plain(vlp_easy())
    values["name"] = objective
    values["model"] = MODELS[objective] | {"image_size": 16, "tokens": 12}
    values["objectives"] = [{"kind": objective}]
    return revise(values, list(settings), KINDS, source="small")


def make(run: Run, text: Text) -> Task:
    torch.manual_seed(0)
    return run.task(text)


def painted(rows: Rows, count: int, first: int = 0) -> Batch:
    """Red and blue pictures with noise in them, each with its class."""
    batch = rows(count, first)
    shades = torch.tensor([[200, 40, 40], [40, 40, 200]], dtype=torch.uint8)
    image = shades[torch.arange(count) % 2][:, :, None, None] + batch.image_BCHW // 8
    return replace(batch, image_BCHW=image, fields=tuple({"cls": n % 2} for n in range(count)))


def learnt(run: Run, text: Text, rows: Rows, steps: int) -> Task:
    task = make(run, text)
    optimiser = adamw(task, run.optim)
    for group in optimiser.param_groups:
        group["lr"] = 3e-3
    for step in range(steps):
        losses = task(painted(rows, 16, 16 * step))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    return task


# On a mixture of two Gaussians, whose network and classifier are known in closed form.

WAY = torch.tensor([1.0, -0.5, 0.25, 0.75], dtype=torch.float64).view(1, 1, 2, 2)


def mixture(objective: DenoisingDiffusion, predict: str) -> tuple[Any, Any]:
    """(network, classifier) of an even mixture of N(WAY, 0.25 I) and N(-WAY, 0.25 I)."""
    table = objective.schedule.alphas_bar()

    def known(x: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a = table[int(time_B[0].round())]
        whole = 0.25 * a + 1 - a
        side_B = 2 * a.sqrt() / whole * (x * WAY).flatten(1).sum(1)
        middle = torch.tanh(side_B / 2)[:, None, None, None] * WAY
        noise = (1 - a).sqrt() / whole * (x - a.sqrt() * middle)
        return a, side_B, noise, ((1 - a) * middle + 0.25 * a.sqrt() * x) / whole

    def ask(x: Tensor, time_B: Tensor) -> Tensor:
        a, _, noise, x0 = known(x, time_B)
        return {"epsilon": noise, "x0": x0, "v": a.sqrt() * noise - (1 - a).sqrt() * x0}[predict]

    def logits(x: Tensor, time_B: Tensor) -> Tensor:
        side_B = known(x, time_B)[1]
        return torch.stack([side_B / 2, -side_B / 2], 1)

    return ask, logits


@pytest.mark.parametrize("predict", ["epsilon", "v", "x0"])
@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddpm", 500), ("ddim", 100), ("DPMSolverMultistepScheduler", 50)]
)
def test_a_pull_gives_the_class_of_a_mixture(sampler: str, steps: int, predict: str) -> None:
    """With the exact classifier and s = 1 the mixture becomes the Gaussian of the class."""
    objective = DenoisingDiffusion(predict=predict)  # pyright: ignore[reportArgumentType]
    ask, logits = mixture(objective, predict)
    classes_B = torch.tensor([0, 1]).repeat(500)
    generator = torch.Generator().manual_seed(0)

    def normal(name: str) -> Tensor:
        return torch.randn(1000, 1, 2, 2, dtype=torch.float64, generator=generator)

    found = objective.sample(
        ask, normal("start"), Sampling(steps=steps, sampler=sampler), normal,
        classifier_gradient(logits, classes_B),
    )  # fmt: skip
    for number, sign in enumerate((1, -1)):
        mine = found[classes_B == number]
        torch.testing.assert_close(mine.mean(0, keepdim=True), sign * WAY, atol=0.1, rtol=0)
        assert float((mine - sign * WAY).std()) == pytest.approx(0.5, abs=0.05)
    hard = objective.sample(
        ask, normal("start"), Sampling(steps=steps, sampler=sampler), normal,
        classifier_gradient(logits, classes_B, 4.0),
    )  # fmt: skip
    sides = (hard * WAY).flatten(1).sum(1) * torch.tensor([1, -1]).repeat(500)
    assert float(sides.mean()) > 1.1 * float(WAY.square().sum())  # beyond: of greater certainty


@pytest.mark.parametrize("predict", ["v", "x0"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "DPMSolverMultistepScheduler"])
def test_a_pull_begins_after_noise_alone(sampler: str, predict: Predict) -> None:
    """At zero terminal SNR no noise that a network is said to see moves the image."""
    objective = DenoisingDiffusion(predict=predict, schedule=Schedule(zero_terminal_snr=True))
    ask, logits = mixture(objective, predict)
    generator = torch.Generator().manual_seed(0)

    def normal(name: str) -> Tensor:
        return torch.randn(200, 1, 2, 2, dtype=torch.float64, generator=generator)

    found = objective.sample(
        ask, normal("start"), Sampling(steps=60, sampler=sampler), normal,
        classifier_gradient(logits, torch.zeros(200, dtype=torch.long)),
    )  # fmt: skip
    torch.testing.assert_close(found.mean(0, keepdim=True), WAY, atol=0.15, rtol=0)


# Trained.


@pytest.fixture(scope="module")
def judge(text: Text, rows: Rows) -> Task:
    return learnt(recipe("noised_class"), text, rows, 60)


def test_it_learns_to_tell_classes_apart_the_less_the_more_noise(judge: Task, rows: Rows) -> None:
    task = judge
    with torch.no_grad():
        sums = task(painted(rows, 128, 9000)).sums
    found = {name: float(total / count) for name, (total, count) in sums.items()}
    assert found["noised_class.accuracy"] > 0.8
    assert found["noised_class.accuracy.0"] > 0.95
    assert found["noised_class.accuracy.3"] < found["noised_class.accuracy.0"]
    assert found["noised_class.loss.0"] < found["noised_class.loss.3"]


def test_a_class_is_the_member_or_the_text(text: Text, rows: Rows) -> None:
    task, batch = make(recipe("noised_class"), text), rows(3)
    told = replace(batch, fields=({"cls": 1}, {}, {}), texts=("red", "blue", "red"))
    assert task.look(told).classes_B.tolist() == [1, 1, 0]  # pyright: ignore[reportOptionalMemberAccess]
    holes = replace(told, texts=("", "blue", ""), hole_B=torch.tensor([False, False, True]))
    losses = task(holes)
    assert int(losses.sums["noised_class.loss"][1]) == 2
    assert int(losses.sums["noised_class.accuracy"][1]) == 2
    with pytest.raises(RecipeError, match=r"has no class.*its text is 'green'"):
        task(replace(told, texts=("", "green", "red")))
    with pytest.raises(RecipeError, match=r"is of class 7; model.classes names 2"):
        task(replace(told, fields=({"cls": 7}, {}, {})))


def test_slices_add_up_to_the_batch(text: Text, rows: Rows) -> None:
    run, batch = recipe("noised_class"), painted(rows, 8)
    whole, parts = make(run, text), make(run, text)
    one, two = whole(batch), [parts(batch.take(first, first + 4)) for first in (0, 4)]
    for name, (total, count) in one.sums.items():
        assert float(total) == pytest.approx(sum(float(p.sums[name][0]) for p in two), 1e-5)
        assert int(count) == sum(int(p.sums[name][1]) for p in two)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.classes=[red]"], "name two or more"),
        (["model.classes=[red, red]"], "name one twice"),
        (["model.channels=[20]"], "not a multiple of groups 8"),
        (["objectives=[{kind: ddpm}]"], "reads Denoised; model 'noisy_classifier' gives Cla"),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe("noised_class", *settings)


def test_it_leads_a_denoiser(
    judge: Task, text: Text, rows: Rows, keep: Keep, tmp_path: Path
) -> None:
    """An unconditional denoiser of both colours, led to one, by DDPM and by DDIM."""
    run = recipe("ddpm", "objectives.ddpm.predict=v")
    base, led = (
        keep(run, learnt(run, text, rows, 40), text),
        keep(recipe("noised_class"), judge, text),
    )
    for sampler in ("ddpm", "ddim"):
        red, blue = (
            _redness(tmp_path / sampler / name, base, led, "--class", name, "--sampler", sampler)
            for name in ("red", "blue")
        )  # from the same noise
        assert mean(red) > mean(blue) + 20, (red, blue)


def _redness(out: Path, base: RunDir, led: RunDir, *words: str) -> list[float]:
    """Of images led to a class: how much more red than blue there is in each.

    A denoiser of 40 steps may well miss with one of them.
    """
    words = ("sample", base.url, "--classifier", led.url, "--classifier-scale", "6", *words)
    words += ("--n", "6", "--steps", "12", "--out", str(out), "--json")
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout)["images"] == 6
    means = [_mean(out / f"{number:05d}.png") for number in range(6)]
    return [red - blue for red, _, blue in means]


def _mean(path: Path) -> list[float]:
    import numpy as np
    from PIL import Image

    return np.array(Image.open(path)).mean((0, 1)).tolist()


def test_the_gradient_of_the_opened_classifier(text: Text, rows: Rows, keep: Keep) -> None:
    base = painter(keep(run := recipe("ddpm"), make(run, text), text))
    place = keep(run := recipe("noised_class"), make(run, text), text)
    judge: Classifier = open_classifier(place, base)
    x, time_B = torch.randn(3, 3, 16, 16), torch.full((3,), 400.0)
    pull = judge.given(["red", "blue", "blue"], 2.0).pull
    assert pull is not None
    found = pull(0, 3)(x, time_B)
    step = 1e-2 * found / found.norm()
    with torch.no_grad():
        chosen = [
            judge(x + sign * step, time_B).log_softmax(1)[range(3), [0, 1, 1]].sum()
            for sign in (1, -1)
        ]
    slope = float(chosen[0] - chosen[1]) / 2e-2
    assert 2 * slope == pytest.approx(float(found.norm()), rel=0.02)
    assert torch.allclose(pull(1, 2)(x[1:2], time_B[1:2]), found[1:2], atol=1e-5)  # rows alone


def test_classifiers_that_do_not_fit_are_refused(text: Text, keep: Keep) -> None:
    def kept(*settings: str) -> RunDir:
        run = recipe(*settings)
        return keep(run, make(run, text), text)

    base, judge = painter(kept("ddpm")), kept("noised_class")
    with pytest.raises(RecipeError, match="is a run of model 'unet'"):
        open_classifier(base.place, base)
    other = kept("noised_class", "objectives.noised_class.schedule.beta_end=0.03")
    with pytest.raises(RecipeError, match=r"Train the classifier with --set objectives.0.sched"):
        open_classifier(other, base)
    scaled = kept("noised_class", "model.first_stage={kind: pixels, scale: 2.0}")
    with pytest.raises(RecipeError, match="must have the same first stage and scale"):
        open_classifier(scaled, base)
    with pytest.raises(RecipeError, match="was trained with 'flow'"):
        open_classifier(judge, painter(kept("flow")))
    with pytest.raises(RecipeError, match="Did you mean 'red'"):
        open_classifier(judge, base).given(["rad"], 1.0)
    objective, x = RectifiedFlow(), torch.zeros(1, 3, 4, 4)
    with pytest.raises(RecipeError, match="guides a ddpm run"):
        objective.sample(lambda x, t: x, x, Sampling(steps=1), lambda name: x, lambda x, t: x)


def test_the_recipe_fits_its_denoiser() -> None:
    judge, base = find("classifier_tiny", []), find("t2i_tiny20", [])
    assert judge.objectives[0].schedule == base.objectives[0].schedule  # pyright: ignore[reportAttributeAccessIssue]
    assert judge.model.stage == base.model.stage and judge.data == base.data
