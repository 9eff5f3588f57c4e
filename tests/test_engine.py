"""What a shape may change of a run: how it is computed, never what."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from diptych.cluster.engine import require_compiler, require_dimensions, require_offload
from diptych.cluster.shapes import Shape, deepspeed_config, find_shape
from diptych.errors import ClusterError, RecipeError
from diptych.pretrain.checkpoint import open_checkpoint
from diptych.pretrain.compiled import compile_blocks
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Said = dict[str, Any]


def trains(**more: Any) -> dict[str, Any]:
    """A job of three steps of one worker without ZeRO, but for what is said."""
    shape = {"workers": 1, "zero_stage": 0, **more.pop("shape", {})}
    return {"do": "train", "steps": 3, "shape": shape, **more}


TOWERS = dict.fromkeys(("text_depth", "visual_depth", "cross_depth"), 1)
LOOK = {"image_size": 8, "visual": {"kind": "patches", "patch": 4}}
CONTRAST = {
    "model": {"kind": "two_stream", "width": 12, "heads": 2, "tokens": 4, "shared": 8}
    | TOWERS
    | LOOK,
    "objectives": [{"kind": "contrastive"}],
}
JOBS: dict[str, dict[str, Any]] = {
    "plain": trains(),
    "micro": trains(shape={"micro_batch": 2}),
    "pair of micros": trains(shape={"workers": 2, "zero_stage": 2, "micro_batch": 2}),
    "four": trains(shape={"workers": 4, "zero_stage": 3}),
    "optimiser on the host": trains(shape={"zero_stage": 2, "offload_optimiser": "cpu"}),
    "all on the host": trains(
        shape={"workers": 2, "zero_stage": 3, "offload_optimiser": "cpu", "offload_weights": "cpu"}
    ),
    "dropout": trains(dropout=0.3),
    "dropout, recomputed": trains(dropout=0.3, shape={"recompute": True}),
    "dropout, recomputed at 3": trains(dropout=0.3, shape={"recompute": True, "zero_stage": 3}),
    "compiled": trains(short=True, shape={"zero_stage": 1, "compile": True}),
    "not compiled": trains(short=True, shape={"zero_stage": 1}),
    "frozen": trains(shape={"workers": 2, "zero_stage": 3}, freeze=["model.vision", "heads.mrm"]),
    **{
        f"contrast {stage}": trains(recipe=CONTRAST, shape={"workers": 2, "zero_stage": stage})
        for stage in (0, 1, 3)
    },
}
COMPILED = ("compiled", "not compiled")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """The losses of each job; then what two that load `frozen` said."""
    place = tmp_path_factory.mktemp("engine")
    jobs = [{**job, "out": f"{place}/{name}"} for name, job in JOBS.items()]
    loads = {
        "do": "load",
        "runs": [f"{place}/frozen"],
        "step": 3,
        "freeze": JOBS["frozen"]["freeze"],
    }
    for name, more in (("again", {}), ("shifted", {"shift": 0.1}), ("thawed", {"freeze": []})):
        shape = {"workers": 1, "zero_stage": 1}
        jobs.append({**loads, "shape": shape, "out": f"{place}/{name}", **more})
    names = [*JOBS, "again", "shifted", "thawed"]
    return {"place": place, **dict(zip(names, ranks.run(place, jobs), strict=True))}


@pytest.mark.parametrize(
    "name", ["micro", "pair of micros", "four", "optimiser on the host", "all on the host"]
)
def test_the_global_batch_stays_whatever_the_machines(name: str, said: Said) -> None:
    assert said[name] == pytest.approx(said["plain"], rel=1e-5)


@pytest.mark.parametrize("name", ["dropout, recomputed", "dropout, recomputed at 3"])
def test_recomputed_activations_are_the_same(name: str, said: Said) -> None:
    rough = 1e-6 if name.endswith("3") else 0.0  # ZeRO-3 has its own linear layer
    assert said[name] == pytest.approx(said["dropout"], rel=rough)
    assert said["dropout"] != said["plain"]


def test_contrast_is_the_same_at_any_stage(said: Said) -> None:
    assert said["contrast 1"] == pytest.approx(said["contrast 0"], rel=1e-5)
    assert said["contrast 3"] == pytest.approx(said["contrast 0"], rel=1e-4)


def test_a_parameter_without_a_dimension_is_refused(small: Any, text: Any) -> None:
    task: Task = small().task(text)
    require_dimensions(task)
    task.heads["mlm"].register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(RecipeError, match=r"heads\.mlm\.scale has no dimension"):
        require_dimensions(task)


def test_compiled_blocks_learn_the_same(said: Said) -> None:
    assert said["compiled"] == pytest.approx(said["not compiled"], rel=1e-5)
    compiled, plain = (open_checkpoint(f"{said['place']}/{name}") for name in COMPILED)
    assert compiled.shapes == plain.shapes


def test_frozen_parameters_are_not_kept_but_known(said: Said) -> None:
    found = open_checkpoint(f"{said['place']}/frozen")
    assert found.base and len(found.base) == 16
    assert not any(name.startswith(("model.vision", "heads.mrm")) for name in found.shapes)
    assert {piece.param for piece in found.slices} == set(found.shapes)
    assert open_checkpoint(f"{said['place']}/again/0").base == found.base
    assert open_checkpoint(f"{said['place']}/plain").base is None


def test_other_frozen_parameters_are_refused(said: Said) -> None:
    base = open_checkpoint(f"{said['place']}/frozen").base
    assert f"was trained beside frozen weights {base}, here they are" in said["shifted"]
    assert "heads.mrm.0.bias is (12,) here and missing there" in said["thawed"]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("zero_stage=4", "zero_stage"),
        ("offload_weights=cpu", "offload_weights 'cpu' needs zero_stage 3"),
        ("offload_optimiser=nvme", "offload_optimiser"),
        ("nvme=/disk", "set both or neither"),
        ("whole_below=-1", "whole_below"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(setting: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        find_shape("pair", [setting])


def test_weights_that_come_and_go_are_not_compiled() -> None:
    with pytest.raises(RecipeError, match="compile needs zero_stage 0, 1 or 2"):
        find_shape("pair", ["compile=true", "zero_stage=3"])


def test_an_optimiser_that_is_not_shared_out_stays_where_it_is() -> None:
    with pytest.raises(RecipeError, match="needs zero_stage 1 or more"):
        find_shape("one", ["offload_optimiser=cpu"])


def test_deepspeed_is_told_of_offload(small: Any) -> None:
    run: Run = small()
    shape = Shape(
        workers=1,
        zero_stage=3,
        whole_below=7,
        offload_optimiser="cpu",
        offload_weights="nvme",
        nvme="/disk",
    )
    assert deepspeed_config(run, shape)["zero_optimization"] == {
        "stage": 3,
        "stage3_param_persistence_threshold": 7,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "offload_param": {"device": "nvme", "pin_memory": False, "nvme_path": "/disk"},
    }
    assert deepspeed_config(run, Shape(workers=1))["zero_optimization"] == {"stage": 1}


def test_a_disk_that_deepspeed_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder  # pyright: ignore

    shape = Shape(workers=1, zero_stage=3, offload_weights="nvme", nvme="/disk")
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: False)
    with pytest.raises(ClusterError, match=r"offload to /disk: .*Install libaio"):
        require_offload(shape)
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: True)
    require_offload(shape)
    require_offload(Shape())


@pytest.mark.parametrize(
    ("gpus", "missing", "fix"), [(0, "CXX", "Install g[+][+]"), (1, "CC", "Install gcc")]
)
def test_a_machine_without_a_compiler_is_named(
    gpus: int, missing: str, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shape = Shape(compile=True, gpus_per_worker=gpus)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(missing, raising=False)
    with pytest.raises(ClusterError, match=f"{socket.gethostname()} has no compiler.*{fix}"):
        require_compiler(shape)
    require_compiler(Shape(gpus_per_worker=gpus))
    monkeypatch.setenv(missing, sys.executable)
    require_compiler(shape)


def test_what_is_compiled_is_what_repeats(small: Any, text: Any) -> None:
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4}
    unet: Any = UNet2DConditionModel(
        **sizes,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    assert compile_blocks(small().task(text).model) == {"Block": 1}
    assert compile_blocks(unet).keys() == {"BasicTransformerBlock"}
    with pytest.raises(RecipeError, match="Linear repeats no block"):
        compile_blocks(nn.Linear(2, 2))


def test_a_model_that_cannot_recompute_says_so(small: Any, text: Any) -> None:
    task: Task = small().task(text)
    del task.model.recompute
    with pytest.raises(RecipeError, match="cannot recompute activations"):
        task.recompute()
