"""Adapters at every ZeRO stage: a run that was cut ends with the bits of one that was not.

Here a path through the matrix. `DIPTYCH_MATRIX=all pytest tests/test_adapters_zero.py` takes every
kind of adapter at every stage.
"""

import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from diptych.pretrain.checkpoint import EMA, open_checkpoint

STAGES = ((1, 0), (2, 1), (2, 2), (2, 3))
"""(workers, ZeRO stage)."""
KINDS = ("lora", "dora", "lokr", "loha", "bias")
ALL = tuple((kind, *stage) for kind in KINDS for stage in STAGES)
SOME = (*(("lora", *stage) for stage in STAGES), ("dora", 2, 3), ("lokr", 2, 3))
CASES = ALL if os.environ.get("DIPTYCH_MATRIX") == "all" else SOME
UNET = {"kind": "unet", "channels": [8, 16], "groups": 4, "heads": 2, "width": 8, "tokens": 4}
UNET |= {"image_size": 8}


def recipe(kind: str, model: dict[str, Any] | None = None) -> dict[str, Any]:
    low = {} if kind == "bias" else {"rank": 2, "alpha": 4}
    found: dict[str, Any] = {"adapters": [{"kind": kind, **low}], "start_from": "/nowhere"}
    return found | ({"model": model, "objectives": [{"kind": "ddpm"}]} if model else {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Each case trained for 10 steps, and again from its fifth; then what others said."""
    place = tmp_path_factory.mktemp("adapters")
    jobs: list[dict[str, Any]] = []
    names: list[str] = []

    def add(name: str, do: str, workers: int, stage: int, **more: Any) -> None:
        shape = {"workers": workers, "zero_stage": stage}
        jobs.append({"do": do, "shape": shape, "steps": 10, "out": f"{place}/{name}", **more})
        names.append(name)

    for kind, workers, stage in CASES:
        name, told = f"{kind}-{workers}-{stage}", {"recipe": recipe(kind)}
        add(name, "train", workers, stage, **told)
        add(f"{name}-again", "resume", workers, stage, run=f"{place}/{name}", step=5, **told)
    unet = {"recipe": recipe("lora", UNET)}
    add("unet", "train", 2, 3, **unet)
    add("unet-again", "resume", 2, 3, run=f"{place}/unet", step=5, **unet)
    first = f"{place}/lora-1-0"
    lora = {"run": first, "step": 5, "recipe": recipe("lora")}
    add("other base", "resume", 1, 0, **lora, other_base=0.01)
    add("other stage", "resume", 2, 3, **lora)
    return place, dict(zip(names, ranks.run(place, jobs), strict=True))


@pytest.mark.parametrize("name", [*(f"{k}-{w}-{z}" for k, w, z in CASES), "unet"])
def test_a_cut_run_ends_with_the_same_bits(name: str, runs: tuple[Path, dict[str, Any]]) -> None:
    place, said = runs
    whole, cut = (open_checkpoint(f"{place}/{each}", 10) for each in (name, f"{name}-again"))
    assert said[f"{name}-again"] == said[name][5:]
    assert whole.kinds == cut.kinds and EMA in whole.kinds
    for kind in whole.kinds:
        ours, theirs = whole.weights(kind), cut.weights(kind)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[param], theirs[param]) for param in ours), kind
    first = open_checkpoint(f"{place}/{name}", 0).weights()
    assert all(not torch.equal(first[param], value) for param, value in whole.weights().items())


@pytest.mark.parametrize(("kind", "workers", "stage"), CASES)
def test_all_stages_train_the_same(
    kind: str, workers: int, stage: int, runs: tuple[Path, dict[str, Any]]
) -> None:
    lora = runs[1]["lora-1-0"] if kind == "lora" else None
    first = lora or next(runs[1][f"{k}-{w}-{z}"] for k, w, z in CASES if k == kind)
    assert runs[1][f"{kind}-{workers}-{stage}"] == pytest.approx(first, rel=1e-5)


def test_a_checkpoint_holds_the_adapter_and_not_the_base(
    runs: tuple[Path, dict[str, Any]],
) -> None:
    for name in ("lora-1-0", "lora-2-3", "unet"):
        found = open_checkpoint(f"{runs[0]}/{name}", 10)
        assert all(".lora_" in param or param.startswith("heads.") for param in found.shapes)
        trained = 4 * sum(math.prod(shape) for shape in found.shapes.values())
        files = list(Path(found.url.removeprefix("file://")).rglob("*.safetensors"))
        header = sum(struct.unpack("<Q", file.read_bytes()[:8])[0] + 8 for file in files)
        tensors = sum(piece.length for piece in found.slices) * 4
        assert tensors == trained * len(found.kinds)  # weights, two moments, the average
        stored, optimiser = sum(file.stat().st_size for file in files), 2 * trained
        assert tensors < stored <= 3 * trained + optimiser + header  # which fills up a page
        assert found.base and len(found.base) == 16
    bases = {open_checkpoint(f"{runs[0]}/lora-{w}-{z}").base for w, z in STAGES}
    assert len(bases) == 1


def test_another_base_is_refused(runs: tuple[Path, dict[str, Any]]) -> None:
    base = open_checkpoint(f"{runs[0]}/lora-1-0").base
    assert f"was trained beside frozen weights {base}, here they are" in runs[1]["other base"]


def test_another_stage_goes_on(runs: tuple[Path, dict[str, Any]]) -> None:
    assert runs[1]["other stage"] == pytest.approx(runs[1]["lora-1-0"][5:], rel=1e-5)
