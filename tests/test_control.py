"""ControlNet and T2I-Adapter: nothing at first, all of it trained, weighted and composed."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, RecipeError
from diptych.finetune.parts import KINDS
from diptych.pretrain.checkpoint import base_digest, open_checkpoint, require_base
from diptych.pretrain.control import Guide, Port, steered
from diptych.pretrain.controls.controlnet import zero_convolutions
from diptych.pretrain.objective import View
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.task import Task

UNET = {"kind": "unet", "image_size": 16, "channels": [8, 16], "heads": 2, "groups": 4}
UNET |= {"width": 16, "tokens": 12}
NET = {"kind": "controlnet", "hint": {"kind": "canny"}}
ADAPTER = {"kind": "t2i_adapter", "hint": {"kind": "canny"}, "blocks": 1}


def settings(control: dict[str, Any] | None = NET, **other: Any) -> Run:
    values: dict[str, Any] = {
        "name": "control",
        "model": UNET,
        "objectives": [{"kind": "ddpm", "drop": 0.5}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
        **({"control": control, "start_from": "/nowhere/base"} if control else {}),
        **other,
    }
    return parse_run(values, KINDS, source="test")


def task_of(run: Run, text: Text, seed: int = 0) -> Task:
    torch.manual_seed(seed)
    task = run.task(text)
    for param in task.model.parameters():  # a base that says something
        torch.nn.init.normal_(param, std=0.1)
    if task.control:
        task.control.begin(task.model)
    return task.eval()


def seen(task: Task, batch: Batch, steer: Callable[[View], View] = lambda view: view) -> Tensor:
    view = steer(replace(task.look(batch), time_B=torch.arange(batch.rows) * 200.0))
    return task.model(view).said_BCHW


def test_a_zero_convolution_learns_though_it_said_nothing(
    text: Text, rows: Callable[..., Batch]
) -> None:
    """The lecture's question: y = wx + b with w = b = 0 gives 0, yet dy/dw = x is not 0."""
    task, batch = task_of(settings(), text), rows(4)
    assert task.control is not None
    convs = zero_convolutions(task.control.net)
    assert all(not conv.weight.any() for conv in convs)
    with torch.no_grad():
        alone, beside = seen(task, batch), seen(task, batch, task.control.show)
    assert torch.equal(alone, beside), "zero convolutions change nothing"
    optim = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    before = {name: param.clone() for name, param in task.named_parameters()}
    task(batch).total.backward()
    optim.step()
    *skips, hint = convs
    assert all(conv.weight.any() and conv.bias is not None and conv.bias.any() for conv in skips)
    assert not hint.weight.any(), "what lies behind a zero convolution waits for its first step"
    with torch.no_grad():
        assert not torch.equal(seen(task, batch, task.control.show), alone)
    optim.zero_grad()
    task(batch).total.backward()
    optim.step()
    assert hint.weight.any(), "and then learns too"
    for name, param in task.named_parameters():
        if not name.startswith("control."):
            assert torch.equal(param, before[name]), name


def test_what_begins_at_random_disturbs_the_base(text: Text, rows: Callable[..., Batch]) -> None:
    task, batch = task_of(settings({**NET, "zero": False}), text), rows(4)
    assert task.control is not None
    with torch.no_grad():
        assert not torch.allclose(seen(task, batch), seen(task, batch, task.control.show))


@pytest.mark.parametrize(
    ("told", "more"),
    [({}, ()), ({"classes": ["cat", "dog"], "placed": True}, ("class_embedding", "add_embedding"))],
    ids=["text", "classes and places"],
)
def test_the_copy_is_of_the_base(told: dict[str, Any], more: tuple[str, ...], text: Text) -> None:
    task = task_of(settings(model=UNET | told), text)
    assert task.control is not None
    net, unet = task.control.net, task.model.unet
    for name in ("conv_in", "time_embedding", "down_blocks", "mid_block", *more):
        ours, theirs = (getattr(one, name).state_dict() for one in (net, unet))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    drawn: Any = task_of(settings({**NET, "copy_base": False}), text)
    assert not torch.equal(drawn.control.net.conv_in.weight, drawn.model.unet.conv_in.weight)


@pytest.mark.parametrize("control", [NET, ADAPTER], ids=["controlnet", "t2i_adapter"])
def test_only_the_control_is_trained_and_kept(control: dict[str, Any], text: Text) -> None:
    task = task_of(settings(control), text)
    trained = {name for name, param in task.named_parameters() if param.requires_grad}
    assert trained and all(name.startswith("control.net.") for name in trained)
    other = task_of(settings(control), text, seed=1)
    assert base_digest(task) == base_digest(task_of(settings(control), text))
    assert base_digest(task) != base_digest(other)


def guides(task: Task, batch: Batch, *weighted: tuple[Port, float]) -> Callable[[View], View]:
    hint = batch.image_BCHW[:, :1]
    return lambda view: steered(view, [Guide(port, hint, weight) for port, weight in weighted])


@pytest.mark.parametrize("control", [NET, ADAPTER], ids=["controlnet", "t2i_adapter"])
def test_weights_scale_and_compose(
    control: dict[str, Any], text: Text, rows: Callable[..., Batch]
) -> None:
    task, other = (task_of(settings(control), text, seed) for seed in (0, 1))
    assert task.control is not None and other.control is not None
    one, two, batch = task.control, other.control, rows(4)
    for port in (one, two):
        for param in port.parameters():
            torch.nn.init.normal_(param, std=0.05)

    def said(*weighted: tuple[Port, float]) -> Tensor:
        with torch.no_grad():
            return seen(task, batch, guides(task, batch, *weighted))

    with torch.no_grad():
        base = seen(task, batch)
    assert torch.equal(said((one, 0.0)), base) and torch.equal(said((one, 0.0), (two, 0.0)), base)
    assert not torch.allclose(said((one, 1.0)), base, atol=1e-3)
    assert torch.equal(said((one, 1.0), (two, 0.0)), said((one, 1.0)))
    torch.testing.assert_close(said((one, 0.5), (one, 0.5)), said((one, 1.0)))
    torch.testing.assert_close(said((one, 0.3), (two, 0.7)), said((two, 0.7), (one, 0.3)))
    assert not torch.allclose(said((one, 1.0), (two, 1.0)), said((one, 1.0)), atol=1e-3)


def test_adapters_add_up_as_those_of_diffusers(text: Text, rows: Callable[..., Batch]) -> None:
    from diffusers.models.adapter import MultiAdapter

    task, other = (task_of(settings(ADAPTER), text, seed) for seed in (0, 1))
    assert task.control is not None and other.control is not None
    nets: list[Any] = [task.control.net, other.control.net]
    hint = rows(4).image_BCHW[:, :1]
    both: Any = MultiAdapter(nets)
    with torch.no_grad():
        theirs = both([hint.float() / 255] * 2, [0.25, 0.75])
        parts = [net(hint.float() / 255) for net in nets]
    for level, (a, b) in zip(theirs, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(level, 0.25 * a + 0.75 * b)


def test_adapters_give_each_level_its_own(text: Text) -> None:
    """Four scales with Stable Diffusion's layout of levels; the first and widest as they come."""
    deep = {**UNET, "channels": [8, 8, 16, 16], "attends": [True, True, True, False]}
    task = task_of(settings(ADAPTER, model=deep), text)
    assert task.control is not None
    sizes = [level.shape[1:] for level in task.control.net(torch.zeros(1, 1, 16, 16))]
    assert sizes == [(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
    batch = Batch(
        keys=("a",), draws_B=torch.tensor([1]), image_BCHW=torch.zeros(1, 3, 16, 16).byte(),
        tokens_BL=torch.ones(1, 12).long(), real_BL=torch.ones(1, 12).bool(), fields=({},),
    )  # fmt: skip
    assert task(batch).total.isfinite()
    odd = {**deep, "attends": [False, True, True, True]}
    with pytest.raises(RecipeError, match="no T2I-Adapter of diffusers has levels"):
        settings(ADAPTER, model=odd).task(text)


def test_both_halves_of_guidance_see_the_hint(text: Text, rows: Callable[..., Batch]) -> None:
    task, batch = task_of(settings(ADAPTER), text), rows(2)
    assert task.control is not None
    port, hint = task.control, batch.image_BCHW[:, :1]
    twice = batch.pick(torch.tensor([0, 1, 0, 1]))
    with torch.no_grad():
        view = replace(task.look(twice), time_B=torch.zeros(4))
        both = task.model(steered(view, [Guide(port, hint)])).said_BCHW
        one = task.model(steered(view, [Guide(port, hint[:1])])).said_BCHW
    assert torch.equal(both[:2], both[2:])
    assert torch.equal(one[0], both[0]) and not torch.equal(one[1], both[1])


def test_cubic_times_prefer_noise(text: Text, rows: Callable[..., Batch]) -> None:
    run = settings(objectives=[{"kind": "ddpm", "times": "cubic"}])
    task = task_of(run, text)
    batch = rows(1).pick(torch.zeros(4000, dtype=torch.long))
    batch = replace(batch, draws_B=torch.arange(4000))
    view = task.look(batch)
    hidden = run.objectives[0].hide(view, task.words)
    assert hidden.time_B is not None
    shares = hidden.time_B / 1000
    assert shares.max() < 1 and shares.min() >= 0
    # P(t > 0.5 T) = P(u^3 < 0.5); the mean of 1 - u^3 is 3/4
    assert float((shares > 0.5).float().mean()) == pytest.approx(0.5 ** (1 / 3), abs=0.02)
    assert float(shares.mean()) == pytest.approx(0.75, abs=0.01)


def test_a_control_needs_a_base_it_fits(text: Text) -> None:
    with pytest.raises(RecipeError, match="name its run: start_from"):
        settings(start_from=None)
    with pytest.raises(RecipeError, match="Did you mean 'canny'"):
        settings({**NET, "hint": {"kind": "cany"}})
    with pytest.raises(RecipeError, match=r"data\.hints names 'depth', which nothing reads"):
        data = {"train": "/nowhere", "tokenizer": "/nowhere.json", "hints": {"depth": "/d"}}
        settings(data=data)
    dit = {"kind": "dit", "image_size": 16, "width": 16, "depth": 1, "heads": 2}
    with pytest.raises(RecipeError, match=r"adds to a U-Net; model 'dit' is none"):
        settings(model=dit).task(text)
    gray = Guide(Port(settings(ADAPTER).control, *_parts(text)), torch.zeros(1, 3, 16, 16))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="has 3 channels; its control was made for 1"):
        steered(None, [gray])  # type: ignore[arg-type]


def _parts(text: Text) -> tuple[Any, Any]:
    task = settings(None).task(text)
    return task.spec, task.model


def test_any_zero_stage_trains_and_resumes_the_control(tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("control-ranks")
    small = {**UNET, "image_size": 8, "tokens": 4, "width": 8}
    values = plain_values(small)
    jobs: list[dict[str, Any]] = []
    stages = [(0, 1), (2, 2), (3, 2)]
    for stage, workers in stages:
        shape = {"workers": workers, "zero_stage": stage}
        out = str(place / f"zero-{stage}")
        jobs.append({"do": "train", "shape": shape, "steps": 3, "out": out, "recipe": values})
        again = {"runs": [out], "step": 2, "out": f"{out}-again", "recipe": values}
        jobs.append({"do": "load", "shape": shape, **again})
    said = ranks.run(place, jobs)
    trained, gone_on = said[::2], said[1::2]
    for losses, resumed in zip(trained, gone_on, strict=True):
        assert losses == pytest.approx(trained[0], rel=1e-4)
        assert resumed == [losses[2]], "the third step after a restart is that of an unbroken run"
    checkpoint = open_checkpoint(str(place / "zero-3"))
    assert all(name.startswith("control.net.") for name in checkpoint.shapes)
    numbers = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    folder = place / "zero-3" / "checkpoints" / "00000003"
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert size < 4 * 4 * numbers * 1.3, "weights, two moments, an average; no base"
    bases = {open_checkpoint(str(place / f"zero-{stage}")).base for stage, _ in stages}
    assert len(bases) == 1 and None not in bases
    with pytest.raises(CheckpointError, match="Start from the same weights"):
        require_base(checkpoint, "0" * 16)


def plain_values(model: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "objectives": [{"kind": "ddpm", "drop": 0.5}],
        "control": NET,
        "start_from": "/nowhere/base",
    }
