"""Denoisers trained by the same loop: loss falls, slices add up, randomness belongs to the row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from diptych.config import plain
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.parts import KINDS
from diptych.pretrain.diffusion import guidance, samplers
from diptych.pretrain.diffusion.rows import empty_text
from diptych.pretrain.diffusion.samplers import Denoiser
from diptych.pretrain.diffusion.schedules import Schedule
from diptych.pretrain.evaluate import evaluate, shuffled
from diptych.pretrain.loop import Listener, train
from diptych.pretrain.objective import View
from diptych.pretrain.optim import adamw
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Losses, Task

Rows = Callable[..., Batch]
MODELS = {
    "dit": {"kind": "dit", "patch": 2, "width": 32, "depth": 2, "heads": 2},
    "unet": {"kind": "unet", "channels": [16, 32], "groups": 8, "heads": 2, "width": 32},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(model: str, objective: str, *settings: str) -> Run:
    values = plain(vlp_easy())
    values["model"] = MODELS[model] | {"image_size": 16, "tokens": 12}
    values["objectives"] = [{"kind": objective}]
    return revise(values, list(settings), KINDS, source="small")


def make(run: Run, text: Text) -> Task:
    torch.manual_seed(0)
    return run.task(text)


def hidden(task: Task, batch: Batch) -> View:
    return task.objectives[0].hide(task.look(batch), task.words)


@dataclass
class Here:
    """One process without DeepSpeed."""

    task: Task
    run: Run
    rank: int = 0

    def __post_init__(self) -> None:
        self.optimiser = adamw(self.task, self.run.optim)

    def step(self, batch: Batch, lr: float) -> Losses:
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        losses = self.task(batch)
        self.optimiser.zero_grad()
        losses.total.backward()
        self.optimiser.step()
        return losses

    def sum(self, values: list[float]) -> list[float]:
        return values

    def save_s(self) -> float:
        return 0.0

    def join(self) -> None:
        pass

    def save(self, step: int, *, wait: bool) -> None:
        pass


def colour(number: int) -> Tensor:
    """Two colours: what the caption says is all there is to know of the picture."""
    return torch.tensor([220, 30, 30] if number % 2 else [30, 30, 220], dtype=torch.uint8)


def painted(rows: Rows, count: int, first: int) -> Batch:
    """Pictures of one colour each, that of the number in the caption: 0 or 1."""
    batch = rows(count, first)
    colours = torch.stack([colour(first + place) for place in range(count)])
    two = rows(2)
    which = torch.tensor([(first + place) % 2 for place in range(count)])
    return replace(
        batch,
        image_BCHW=colours[:, :, None, None].expand(-1, -1, 16, 16).contiguous(),
        tokens_BL=two.tokens_BL[which],
        real_BL=two.real_BL[which],
    )


class Ear(Listener):
    """Keeps the reports."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def report(self, row: dict[str, float]) -> None:
        self.rows.append(row)


@pytest.mark.parametrize(("model", "objective"), [("dit", "ddpm"), ("dit", "flow")])
def test_it_learns_what_the_captions_say(
    model: str, objective: str, rows: Rows, text: Text
) -> None:
    run = recipe(
        model, objective, "steps=150", "log_steps=25", "checkpoint_steps=150",
        "optim.lr=4e-3", "optim.warmup_steps=10",
        *(["objectives.ddpm.predict=v"] if objective == "ddpm" else []),
    )  # fmt: skip
    task, found = make(run, text), list[dict[str, float]]()
    batches = ((step, painted(rows, 16, 16 * step)) for step in range(150))
    train(Here(task, run), batches, run, Ear(found))
    name = f"{objective}.loss"
    assert found[-1][name] < 0.6 * found[0][name]
    quarters = {f"{objective}.mse.{number}" for number in range(4)}
    always = {"step", "lr", "seconds", "skipped", "tokens", "fill"}
    assert set(found[-1]) == {*always, name, *quarters}
    tests = [painted(rows, 32, 10_000)]
    right = evaluate(task, tests)[name]
    wrong = evaluate(task, tests, change=shuffled)[name]
    assert wrong > 1.2 * right  # it reads the caption
    if objective == "ddpm":
        assert_paints(task, rows)


def assert_paints(task: Task, rows: Rows) -> None:
    """Samples have the colour of their caption, by DDIM, guided in the lecture's way."""
    batch = painted(rows, 8, 0)
    context = torch.cat([batch.tokens_BL, batch.real_BL.long()], 1)
    empty = torch.cat([part.long() for part in empty_text(batch.tokens_BL, task.words)], 1)

    def model(x: Tensor, rows_B: Tensor, context: Tensor) -> Tensor:
        tokens_BL, real_BL = context.chunk(2, 1)
        view = replace(
            task.look(batch), image_BCHW=x, tokens_BL=tokens_BL, real_BL=real_BL.bool(),
            time_B=rows_B.float(),
        )  # fmt: skip
        with torch.no_grad():
            return task.model(view).said_BCHW

    table = Schedule().alphas_bar()
    guided = guidance.classifier_free(model, context, empty, 2.0)
    denoiser = Denoiser(guided, table, "v", limit=lambda x0: x0.clamp(-1, 1))
    x_T = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = samplers.ddim(denoiser, x_T, samplers.times(1000, 20, "trailing"))
    red_B, blue_B = found[:, 0].mean((1, 2)), found[:, 2].mean((1, 2))
    assert ((red_B > blue_B) == (torch.arange(8) % 2 == 1)).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_slices_of_a_batch_add_up_to_it(model: str, objective: str, rows: Rows, text: Text) -> None:
    """One rank of 8 rows against two of 4: the loss, what is reported, and gradients."""
    run, batch = recipe(model, objective), rows(8)
    whole, parts = make(run, text), make(run, text)
    one = whole(batch)
    one.total.backward()
    two = [parts(batch.take(first, first + 4)) for first in (0, 4)]
    torch.stack([part.total / 2 for part in two]).sum().backward()
    for name, (total, count) in one.sums.items():
        assert float(total) == pytest.approx(sum(float(p.sums[name][0]) for p in two), 1e-5), name
        assert int(count) == sum(int(p.sums[name][1]) for p in two), name
    assert sum(int(one.sums[f"{objective}.mse.{number}"][1]) for number in range(4)) == 8
    for (name, ours), theirs in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_time_noise_and_dropped_captions_belong_to_the_row(
    objective: str, rows: Rows, text: Text
) -> None:
    task = make(recipe("dit", objective, "objectives.0.drop=0.3"), text)
    batch = rows(400)
    seen, part = hidden(task, batch), hidden(task, batch.take(100, 150))
    assert seen.time_B is not None
    assert part.time_B is not None
    for ours, theirs in [
        (seen.image_BCHW, part.image_BCHW),
        (seen.time_B, part.time_B),
        (seen.tokens_BL, part.tokens_BL),
        (seen.targets[objective], part.targets[objective]),
    ]:
        assert torch.equal(ours[100:150], theirs)
    assert 0 <= float(seen.time_B.min()) < 60
    assert 880 < float(seen.time_B.max()) <= 1000
    assert float(seen.time_B.mean()) == pytest.approx(500, abs=50)
    none_BL, real_BL = text.encode([""] * 400)
    dropped_B = (seen.tokens_BL == none_BL).all(1)
    assert torch.equal(seen.real_BL[dropped_B], real_BL[dropped_B])
    assert torch.equal(seen.tokens_BL[~dropped_B], batch.tokens_BL[~dropped_B])
    assert float(dropped_B.float().mean()) == pytest.approx(0.3, abs=0.08)


def test_a_left_out_row_counts_nowhere(rows: Rows, text: Text) -> None:
    run, batch = recipe("dit", "ddpm"), rows(8)
    task, hole_B = make(run, text), torch.arange(8) == 3
    whole, holed = task(batch), task(replace(batch, hole_B=hole_B))
    lost = task(batch.take(3, 4))
    for name, (total, count) in whole.sums.items():
        less, fewer = holed.sums[name]
        assert float(total - less) == pytest.approx(float(lost.sums[name][0]), abs=1e-5), name
        assert int(count - fewer) == int(lost.sums[name][1]), name


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "p2", "debiased"])
@pytest.mark.parametrize("predict", ["v", "x0"])
def test_weights_and_zero_terminal_snr_stay_finite(
    weighting: str, predict: str, rows: Rows, text: Text
) -> None:
    run = recipe(
        "dit", "ddpm",
        f"objectives.ddpm.weighting={weighting}", f"objectives.ddpm.predict={predict}",
        "objectives.ddpm.schedule.zero_terminal_snr=true", "objectives.ddpm.schedule.steps=4",
        "objectives.ddpm.noise_offset=0.1", "objectives.ddpm.perturbation=0.1",
    )  # fmt: skip
    task = make(run, text)
    view = hidden(task, rows(32))
    assert view.time_B is not None
    assert set(view.time_B.tolist()) == {0.0, 250.0, 500.0, 750.0}
    losses = task(rows(32))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_offset_moves_the_target_and_perturbation_does_not(rows: Rows, text: Text) -> None:
    batch = rows(4)
    plain_one = hidden(make(recipe("dit", "ddpm"), text), batch)
    lifted = hidden(make(recipe("dit", "ddpm", "objectives.ddpm.noise_offset=0.5"), text), batch)
    shaken = hidden(make(recipe("dit", "ddpm", "objectives.ddpm.perturbation=0.5"), text), batch)
    moved = lifted.targets["ddpm"] - plain_one.targets["ddpm"]
    torch.testing.assert_close(moved, moved[..., :1, :1].expand_as(moved), atol=1e-5, rtol=0)
    assert torch.equal(shaken.targets["ddpm"], plain_one.targets["ddpm"])
    assert not torch.equal(shaken.image_BCHW, plain_one.image_BCHW)


@pytest.mark.parametrize("model", MODELS)
def test_other_sizes_than_in_training_are_taken(model: str, rows: Rows, text: Text) -> None:
    """The lecture's picture is wider than any that its model saw."""
    task, batch = make(recipe(model, "ddpm"), text), rows(2)
    wide = torch.randint(0, 256, (2, 3, 24, 64), dtype=torch.uint8)
    found = task(replace(batch, image_BCHW=wide))
    assert found.total.isfinite()


@pytest.mark.parametrize("model", MODELS)
def test_padding_and_unreal_tokens_change_nothing(model: str, rows: Rows, text: Text) -> None:
    task, batch = make(recipe(model, "ddpm"), text).eval(), rows(4)
    for parameter in task.parameters():  # some start at zero and would hide a difference
        torch.nn.init.normal_(parameter, std=0.05)
    noisy = torch.where(batch.real_BL, batch.tokens_BL, 7)
    found = task(replace(batch, tokens_BL=noisy)).total.detach()
    torch.testing.assert_close(found, task(batch).total.detach())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["objectives.ddpm.schedule.zero_terminal_snr=true"], "set predict=v"),
        (["objectives=[{kind: ddpm}, {kind: flow}]"], "name one"),
        (["objectives=[{kind: mlm}]"], "reads Seen; model 'dit' gives Denoised"),
        (["model.patch=3"], "image_size 16 is not a multiple of 3"),
        (["model.width=33"], "multiple of heads"),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe("dit", "ddpm", *settings)
    with pytest.raises(RecipeError, match="reads Denoised; model 'vlp' gives Seen"):
        revise(plain(vlp_easy()), ["objectives=[{kind: flow}]"], KINDS, source="small")


def test_a_unet_that_cannot_be_is_refused() -> None:
    for setting, said in [
        ("model.channels=[16, 32, 36]", "channels 36 is not a multiple of groups 8"),
        ("model.channels=[8, 8, 8, 8, 8, 8]", "image_size 16 is not a multiple of 32"),
        ("model.width=33", "multiple of heads"),
    ]:
        with pytest.raises(RecipeError, match=said):
            recipe("unet", "ddpm", setting)


def test_every_tensor_of_a_denoiser_is_trained_and_kept(text: Text) -> None:
    """A checkpoint holds the parameters: nothing else may have state."""
    for model in MODELS:
        task = make(recipe(model, "ddpm"), text)
        assert set(task.state_dict()) == {name for name, _ in task.named_parameters()}
