"""Models that see what a frozen encoder says of a picture: live, or from a cache."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.config import plain
from diptych.data import precompute
from diptych.data.index import Manifest
from diptych.data.loader import Loader
from diptych.data.pack import Sample
from diptych.data.plan import Plan
from diptych.data.tokens import Text
from diptych.errors import ExportError, RecipeError, StaleCacheError
from diptych.finetune.export.onnx import require
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise

SIZE, CELLS, VALUES = 64, 4, 512


@pytest.fixture
def make(
    samples: Callable[..., list[Sample]], dataset: Callable[..., Manifest]
) -> Callable[..., Run]:
    """`make(...)`: a small model of the cells that a network of timm makes of a picture."""
    source = dataset([samples(16)])

    def made(*settings: str) -> Run:
        values = plain(vlp_easy())
        visual = {"kind": "regions", "count": CELLS, "values": VALUES, "encoder": {"kind": "grid"}}
        sizes = {"image_size": SIZE, "tokens": 12, "width": 16, "depth": 1, "heads": 2}
        values["model"] = {"kind": "single_stream", **sizes, "visual": visual}
        values["objectives"] = [{"kind": "itm"}, {"kind": "mlm"}, {"kind": "mrm"}]
        values["batch"] = 8
        values["data"] = {
            "train": source.url.removesuffix("/index"),
            "tokenizer": "tokenizer.json",
        }
        return revise(values, list(settings), KINDS, source="small")

    return made


def opened(run: Run) -> Plan:
    from diptych.pretrain.charts import open_plan

    return open_plan(run)


DETECTOR = (
    "model.visual={kind: regions, count: 5, values: 1024, encoder: {kind: detector, "
    "network: fasterrcnn_mobilenet_v3_large_320_fpn, count: 5, threshold: 0, size: 64}}"
)


@pytest.mark.parametrize("settings", [(), (DETECTOR,), (DETECTOR, "model.packed=true")])
def test_losses_from_a_cache_are_those_of_live_encoding(
    settings: tuple[str, ...], make: Callable[..., Run], text: Text, tmp_path: Path
) -> None:
    live = make(*settings)
    encoder = live.model.eye
    assert encoder is not None
    plan, out = opened(live), str(tmp_path / "regions")
    spec = encoder.spec(sizes=[(SIZE, SIZE)], dtype="float32")
    precompute.precompute(plan.sources[0].manifest, encoder.open(), spec, out)
    cached = make(*settings, f"data.caches=['{out}']")
    torch.manual_seed(0)
    task, found = live.task(text), list[list[Tensor]]()
    assert not any("eye" in name for name in task.state_dict()), "frozen, and no part of the task"
    for run in (live, cached):
        joined = run.joined(plan)
        loader = Loader(plan, text, run.rows, stop=2, joined=joined)
        batches = [batch for _, batch in loader]
        assert ("regions" in batches[0].arrays) == (joined is not None)
        found.append([task(batch).total for batch in batches])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    found[0][0].backward()
    assert task.model.vision.project.weight.grad.abs().sum() > 0
    with pytest.raises(StaleCacheError, match="encoder_digest"):
        other = make(*settings, f"data.caches=['{out}']", "model.visual.encoder.seed=1")
        other.joined(plan)


def test_cells_lie_where_they_are_seen(make: Callable[..., Run], text: Text) -> None:
    run = make("objectives=[{kind: mlm}]")
    [(_, batch)] = Loader(opened(run), text, run.rows, stop=1)
    view = run.task(text).look(batch)
    assert view.features_BNF is not None and view.boxes_BN4 is not None
    assert view.features_BNF.shape == (8, CELLS, VALUES)
    expected = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    assert view.boxes_BN4[3].tolist() == expected


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.visual.values=100", r"4 regions of 512 values; the recipe says 4 of 100. Set"),
        ("model.visual.count=9", r"Set model.visual.count=4 and model.visual.values=512"),
        ("model.visual.count=8", "no square number"),
        ("model.visual.encoder={kind: text, weights: x}", "reads text, not the image"),
    ],
)
def test_other_cells_than_the_recipe_says_are_refused(
    setting: str, said: str, make: Callable[..., Run], text: Text
) -> None:
    with pytest.raises(RecipeError, match=said):
        run = make(setting, "objectives=[{kind: mlm}]")
        [(_, batch)] = Loader(opened(run), text, run.rows, stop=1)
        run.task(text).look(batch)


def test_onnx_is_refused(make: Callable[..., Run]) -> None:
    with pytest.raises(ExportError, match="frozen encoder 'grid'"):
        require(make())
