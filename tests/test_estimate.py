"""`plan` against what happens: memory, requests, checkpoints; and what it refuses."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.cluster import costs, curve, estimate, preflight
from diptych.cluster.activations import pass_bytes
from diptych.cluster.costs import Rates
from diptych.cluster.shapes import Shape
from diptych.cluster.worker import open_plan
from diptych.config import to_yaml
from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.data.loader import Loader
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.pretrain.optim import lr_at
from diptych.pretrain.run import Run

Rows = Callable[..., Batch]
Tiny = Callable[..., Run]
PAIR = Shape(workers=2)


def allocator_peak(work: Callable[[], object]) -> int:
    """Peak of what the CPU's allocator gave out meanwhile, as the profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    peak = now = 0
    inner: Any = seen.profiler
    for event in inner.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_takes_what_the_allocator_gives(
    recompute: bool, small: Any, rows: Rows, text: Text
) -> None:
    """The count on real tensors is that of the allocator; without data it is an upper bound."""
    run = small("model.depth=4", "model.width=32")
    task, batch = run.task(text), rows(16)
    if recompute:
        task.recompute()
    task(batch).total.backward()  # gradients are there now, and stay
    real = allocator_peak(lambda: task(batch).total.backward())
    counted = pass_bytes(task, batch)
    assert counted == pytest.approx(real, rel=0.1)
    with torch.device("meta"):
        bare = run.task(text)
    if recompute:
        bare.recompute()
    with estimate._all_nonzero():
        bound = pass_bytes(bare, batch.to(torch.device("meta")))
    assert counted <= bound < 1.6 * counted


def test_recompute_takes_less(small: Any, rows: Rows, text: Text) -> None:
    run, batch = small("model.depth=6"), rows(16)
    task = run.task(text)
    kept = pass_bytes(task, batch)
    task.recompute()
    assert pass_bytes(task, batch) < 0.6 * kept


@pytest.fixture(scope="module")
def needed(tiny: Tiny, easy: str) -> estimate.Need:
    run = tiny("plan", "batch=64")
    text = tokens.load(run.data.tokenizer, run.model.tokens)
    return estimate.need(run, PAIR, open_plan(run), text)


def test_what_fits_grows_with_the_memory(tiny: Tiny, needed: estimate.Need) -> None:
    run = tiny("plan", "batch=64")
    for micro in (8, 32):
        room = needed.total(micro) / 0.9 + 1
        assert estimate.rows_that_fit(needed, run, PAIR, room)[0] == micro
        estimate.require_fit(needed, run, PAIR.model_copy(update={"micro_batch": micro}), room)
    with pytest.raises(RecipeError, match=r"8 rows fit: --shape-set micro_batch=8\."):
        estimate.require_fit(needed, run, PAIR, needed.total(8) / 0.9 + 1)
    assert needed.total(8) < needed.total(16) < needed.total(32)


@pytest.mark.parametrize(
    ("part", "shape", "says"),
    [
        ("weights", {}, "zero_stage=3"),
        ("gradients", {}, "zero_stage=2"),
        ("moments", {"zero_stage": 0}, "zero_stage=1"),
        ("master weights and moments", {}, "offload_optimiser=cpu"),
        ("buffers", {}, "zero_stage=0"),
    ],
)
def test_what_cannot_be_says_what_is_too_large(
    part: str, shape: Any, says: str, tiny: Tiny, needed: estimate.Need
) -> None:
    large = replace(needed, parts={**needed.parts, part: 10**11})
    with pytest.raises(RecipeError, match=f"the most is {part}, 100.00 GB.*{says}"):
        estimate.require_fit(large, tiny("plan"), Shape(workers=2, **shape), 80e9)


def test_activations_that_cannot_be(tiny: Tiny, needed: estimate.Need) -> None:
    large = replace(needed, per_row=10**11)
    with pytest.raises(RecipeError, match=r"the most is activations.*recompute=true"):
        estimate.require_fit(large, tiny("plan"), PAIR, 80e9)


def test_requests_are_those_of_the_loaders(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks read three epochs; each ranged read is counted as it is made."""
    from diptych.data import fetch

    run = tiny("plan", "batch=30", "steps=60")
    chart = open_plan(run)
    text = tokens.load(run.data.tokenizer, run.model.tokens)
    asked: list[int] = []
    span = fetch.span

    def counted(url: str, start: int, end: int, **rest: Any) -> Any:
        if url.endswith(".tar"):
            asked.append(end - start)
        return span(url, start, end, **rest)

    monkeypatch.setattr(fetch, "span", counted)
    for rank in range(2):
        for _ in Loader(chart, text, run.rows, rank=rank, world=2, stop=60):
            pass
    found = costs.reading(chart, run, PAIR)
    assert found.bytes == pytest.approx(sum(asked), rel=0.25)
    assert found.requests == pytest.approx(len(asked), rel=0.5)


def test_time_and_money(tiny: Tiny) -> None:
    run = tiny("plan", "steps=3600", "checkpoint_steps=60")
    rates = Rates(1.0, 50.0, worker_hour=2.0, egress_gb=0.1, requests_1000=0.5)
    facts = costs.facts(open_plan(run), run, PAIR, rates, checkpoint_bytes=10**9)
    assert facts["time"] == "1:00:00"
    assert facts["cost of machines"] == 4.0
    assert facts["seconds to upload a checkpoint, at 50 MB/s a worker"] == 10.0
    assert facts["cost of data read"] == round(facts["bytes of data read"] / 1e10, 2)
    # 60 checkpoints; of each worker ten parts of 50 MiB and three small ones, and six more.
    assert facts["requests for checkpoints"] == 60 * (2 * (3 + math.ceil(5e8 / (50 << 20))) + 6)
    assert facts["cost"] == pytest.approx(
        4.0 + facts["cost of data read"] + facts["cost of requests"], abs=0.01
    )
    assert "cost" not in costs.facts(open_plan(run), run, PAIR, Rates(), 10**9)


def test_checkpoints_that_come_too_fast_are_refused(tiny: Tiny) -> None:
    run = tiny("plan", "checkpoint_steps=5")
    with pytest.raises(RecipeError, match=r"takes 5\.0 s to upload, one comes every 1\.0 s.*=25,"):
        costs.require_pace(run, PAIR, Rates(0.2), 10**9)
    costs.require_pace(run, PAIR, Rates(1.0), 10**9)
    costs.require_pace(run, PAIR, Rates(), 10**12)


def test_the_facts_of_a_plan(tiny: Tiny) -> None:
    facts, wrong = preflight.plan(tiny("plan", "epochs=2"), PAIR, memory_gb=1)
    assert wrong is None
    assert facts["steps"] == 75
    assert facts["samples per epoch"] == 600
    assert facts["micro-batch that fits 1 GB"] == 8
    assert facts["bytes of memory per worker"] == sum(
        size for name, size in facts.items() if name.startswith("  of which")
    )


def stands(model: str, tmp_path: Path) -> dict[str, Any]:
    """A model with frozen parts, whose headers are all that is asked for."""
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "e.safetensors")
    save_file({"c": torch.zeros(7).half()}, tmp_path / "d.safetensors")
    folder = tmp_path / "words"
    folder.mkdir()
    for name in ("model", "model.fp16"):
        save_file({"t": torch.zeros(2, 5)}, folder / f"{name}.safetensors")
    stage = {"weights": f"{tmp_path}/e.safetensors", "decoder": f"{tmp_path}/d.safetensors"}
    text = {"encoder": {"kind": "text", "weights": str(folder)}, "width": 4}
    sizes = {"image_size": 32, "tokens": 12, "patch": 1, "width": 32, "depth": 1, "heads": 2}
    stage["kind"] = "taef2"
    return {"kind": model, "first_stage": stage, "texts": [text], **sizes}


def test_frozen_parts_beside_the_task_are_counted_by_their_headers(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = stands("dit", tmp_path)
    run = tiny("frozen", f"model={json.dumps(model)}", "objectives=[{kind: ddpm}]")
    for shape in (PAIR, Shape(workers=2, zero_stage=3, gpus_per_worker=1)):
        facts, wrong = preflight.plan(run, shape)
        assert wrong is None
        assert facts["frozen: first_stage, whole on every worker"] == 24
        assert facts["frozen: text.0, whole on every worker"] == 10
        assert facts["  of which frozen: first_stage"] == 96
        assert facts["bytes of memory per worker"] == sum(
            size for name, size in facts.items() if name.startswith("  of which")
        )
    (tmp_path / "d.safetensors").write_bytes(b"none of these")
    with pytest.raises(RecipeError, match=r"d\.safetensors is damaged"):
        preflight.plan(run, PAIR)
    (tmp_path / "d.safetensors").unlink()
    facts, wrong = preflight.plan(run, PAIR)
    said = f"not counted: file://{tmp_path}/d.safetensors is not there"
    assert (facts["frozen: first_stage, whole on every worker"], wrong) == (said, None)
    assert "  of which frozen: first_stage" not in facts


@pytest.mark.parametrize(("steps", "every", "want"), [(50, 200, 1), (1000, 300, 4), (600, 300, 2)])
def test_the_last_step_has_a_checkpoint_too(tiny: Tiny, steps: int, every: int, want: int) -> None:
    run = tiny("plan", f"steps={steps}", f"checkpoint_steps={every}")
    assert preflight.plan(run, PAIR)[0]["checkpoints"] == want


def test_what_it_starts_from_has_to_be_there(tiny: Tiny, tmp_path: Path) -> None:
    facts, wrong = preflight.plan(tiny("plan", f"start_from={tmp_path}/nowhere"), PAIR)
    assert facts["samples"] == 600, "told all the same"
    assert f"{tmp_path}/nowhere" in str(wrong)


def test_epochs_beyond_all_steps_are_refused(tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match=r"epochs 1e\+12 are 37,500,000,000,000 steps"):
        preflight.plan(tiny("plan", "epochs=1e12"), PAIR)
    assert preflight.plan(tiny("plan", "steps=1000000000000"), PAIR)[1] is None


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("name", ["step-seconds", "upload-mb", "memory-gb", "price-gb"])
def test_a_rate_is_a_number(name: str, value: str) -> None:
    if (name, value) == ("price-gb", "0"):
        return  # it may be free
    done = CliRunner().invoke(app, ["plan", "vlp_easy", f"--{name}", value], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"{value} is not between 1e-6 and 1e12" in done.output


def test_a_plan_that_cannot_be_ends_with_code_2(tiny: Tiny, tmp_path: Path) -> None:
    """The facts are told all the same; the picture is a picture."""
    file = tmp_path / "r.yaml"
    file.write_text(to_yaml(tiny("plan", "optim.warmup_steps=10", "optim.decay=cosine")))
    words = ["plan", str(file), "--plot", str(tmp_path / "lr.png")]
    done = CliRunner().invoke(app, [*words, "--json", "--memory-gb", "0.001"])
    assert isinstance(done.exception, RecipeError)
    assert "of 0.0 GB, 10% of it kept free" in str(done.exception)
    assert json.loads(done.stdout)["micro-batch that fits 0.001 GB"] == "none"
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "learning rate, by step (cosine)" in done.output


def test_the_curve_is_the_schedule(tiny: Tiny) -> None:
    run = tiny("plan", "steps=1000", "optim.warmup_steps=100", "optim.decay=linear")
    found = curve.points(run, 60)
    assert (found[0][0], found[-1][0], len(found)) == (0, 999, 60)
    assert all(rate == lr_at(run.optim, step, 1000) for step, rate in found)
    lines = curve.terminal(run).splitlines()
    assert "█" not in lines[1][-20:]  # it has come down
    assert lines[6][9:].count("█") > 45
    one = tiny("plan", "steps=1", "optim.lr=2e-3", "optim.warmup_steps=0")
    assert "2.0e-03" in curve.terminal(one)


def test_packed_rows_are_counted_as_padded_ones(tiny: Tiny, needed: estimate.Need) -> None:
    """How long rows are together is not known without data."""
    run = tiny("plan", "batch=64", "model.packed=true")
    text = tokens.load(run.data.tokenizer, run.model.tokens)
    assert estimate.need(run, PAIR, open_plan(run), text) == needed
