"""ONNX exports: onnxruntime computes what was trained, for any number of rows."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import ExportError
from diptych.finetune import export
from diptych.finetune.export import onnx
from diptych.finetune.target import find_target
from diptych.finetune.verify import verify
from diptych.pretrain.run import Run

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = "width: 16, heads: 2, image_size: 16, tokens: 12"
STREAMS = f"{{kind: two_stream, {SIZE}, text_depth: 1, visual_depth: 1, cross_depth: 1"
MODELS = {
    "vilt": f"{{kind: single_stream, {SIZE}, depth: 1, packed: true, visual: {{kind: patches, "
    "patch: 4}}",
    "towers": f"{STREAMS}, shared: 8, visual: {{kind: regions, count: 5, values: 6}}}}",
    "clip": f"{{kind: clip, {SIZE}, depth: 1, visual_width: 8, visual_heads: 2, visual_depth: 1, "
    "patch: 8}",
}


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_what_was_trained(
    name: str, small: Callable[..., Run], text: Text, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    other = "{kind: vqa, answers: [red, blue]}" if name == "vilt" else "{kind: contrastive}"
    run = small(f"model={MODELS[name]}", f"objectives=[{{kind: itm}}, {other}]")
    torch.manual_seed(0)
    task, out = run.task(text), tmp_path / name
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    boxes = torch.rand(6, 5, 4).sort(2).values
    boxes[1, 2:] = 0
    arrays = {"features": torch.randn(6, 5, 6), "boxes": boxes}
    batch = replace(rows(6), arrays=arrays if name == "towers" else {})
    target: Any = find_target("onnx", export, run)
    target.write(out, run, task, text, {"steps": 3})
    proof = target.prove(out, run, task, text, batch)
    assert proof["batch sizes"] == [1, 3, 8] and proof["process"] != os.getpid()
    own = {"vqa.logits"} if name == "vilt" else {"text_embeds", "image_embeds"}
    own |= set() if name == "clip" else {"region_states"}
    wanted = {"pooled", "token_states", "itm.logits"} | own
    assert set(proof["max_difference"]) == wanted
    assert max(proof["max_difference"].values()) <= 1e-5
    if name == "clip":
        (out / "probe.safetensors").unlink()  # as in a copy for use
        verify(out).require()
    if name == "towers":
        probe = load_file(out / "probe.safetensors")
        probe["3.out.pooled"][2, 0] += 0.01
        save_file(probe, out / "probe.safetensors")
        with pytest.raises(ExportError, match=r"pooled differs by 0\.01 from the trained model"):
            onnx.repeat(out, "clean_encoder_onnx.py")
        assert not (out / "proof.json").exists()


def test_words_alone_need_no_picture(small: Callable[..., Run], text: Text) -> None:
    bert = f"{{kind: single_stream, {SIZE}, depth: 1, order: post, visual: {{kind: none}}}}"
    run = small(f"model={bert}", "objectives=[{kind: mlm}]")
    ids, real = text.encode(["a picture", ""])
    found = onnx.Graph(run, run.task(text)).named(torch.zeros(2, 3, 16, 16), ids, real, [])
    assert set(found) == {"pooled", "token_states"}


def test_each_onnx_target_leaves_the_others_models(small: Callable[..., Run]) -> None:
    dit = "{kind: dit, image_size: 16, tokens: 12, width: 16, depth: 1, heads: 2, patch: 4}"
    run = small(f"model={dit}", "objectives=[{kind: ddpm}]")
    with pytest.raises(ExportError, match=r"'dit'; --to onnx takes encoders, towers and denoisers"):
        onnx.require(run)
    assert find_target("onnx", export, run).TAKES == "denoisers"
    assert find_target("onnx", export, small()).TAKES == "every model but denoisers"
