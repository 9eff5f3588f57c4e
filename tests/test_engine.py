"""What a shape may change of a run: how it is computed, never what."""

from typing import Any

import pytest
import ranks

from diptych.cluster.engine import require_offload
from diptych.cluster.shapes import Shape, deepspeed_config, find_shape
from diptych.errors import ClusterError, RecipeError
from diptych.pretrain.checkpoint import open_checkpoint
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Said = dict[str, Any]


def trains(**more: Any) -> dict[str, Any]:
    """A job of three steps of one worker without ZeRO, but for what is said."""
    shape = {"workers": 1, "zero_stage": 0, **more.pop("shape", {})}
    return {"do": "train", "steps": 3, "shape": shape, **more}


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
    "frozen": trains(shape={"workers": 2, "zero_stage": 3}, freeze=["model.vision", "heads.mrm"]),
}


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


def test_a_model_that_cannot_recompute_says_so(small: Any, text: Any) -> None:
    task: Task = small().task(text)
    del task.model.recompute
    with pytest.raises(RecipeError, match="cannot recompute activations"):
        task.recompute()
