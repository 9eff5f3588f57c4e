"""A folder of transformers is what a run starts from: LXMERT, VisualBERT, ViLT, BERT."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, RecipeError
from diptych.finetune.recipes import find
from diptych.finetune.start import fresh_task, require_start
from diptych.pretrain.bert import start_words
from diptych.pretrain.run import Run

Rows = Callable[..., Batch]
BERT = {"num_hidden_layers": 2}
SIZES: dict[str, dict[str, Any]] = {
    "LxmertForPreTraining": {"l_layers": 2, "r_layers": 1, "x_layers": 1, "visual_feat_dim": 6},
    "VisualBertForPreTraining": {**BERT, "visual_embedding_dim": 6, "layer_norm_eps": 1e-3},
    "ViltForMaskedLM": {**BERT, "image_size": 16, "patch_size": 4},
    "BertForPreTraining": BERT,
}


def saved(name: str, text: Text, home: Path, **more: Any) -> Any:
    """Transformers' model of that name with random weights, stored at `home`."""
    size = {"vocab_size": text.size, "hidden_size": 16, "num_attention_heads": 2}
    size |= {"intermediate_size": 40, "max_position_embeddings": 20, **SIZES.get(name, BERT)}
    kind: Any = getattr(transformers, name)
    torch.manual_seed(3)
    model = kind(kind.config_class(**{**size, **more}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(home, max_shard_size="6KB")  # several shards
    (home / "tokenizer.json").write_text(text.tokenizer.to_str())
    return model


def recipe(home: Path, more: str = "{tokens: 12}") -> Run:
    values = f"name: m\nstart_from: {home}\nmodel: {more}\ndata: {{train: none}}\n"
    (home / "mine.yaml").write_text(values)
    return find(str(home / "mine.yaml"), [])


@pytest.mark.parametrize("name", SIZES)
def test_its_model_heads_and_tokenizer_are_taken(
    name: str, text: Text, rows: Rows, tmp_path: Path
) -> None:
    theirs = saved(name, text, tmp_path)
    sees = ", visual: {count: 5}" if "l_layers" in SIZES[name] or "Visual" in name else ""
    run = recipe(tmp_path, f"{{tokens: 12{sees}}}")
    require_start(run.start_from or "")
    task, batch = fresh_task(run, text).eval(), rows(6)
    boxes = torch.rand(6, 5, 4).sort(2).values
    boxes[1, 2:] = 0
    view = task.look(
        replace(batch, arrays={"features": torch.randn(6, 5, 6), "boxes": boxes} if sees else {})
    )
    given: dict[str, Any] = {"input_ids": view.tokens_BL, "attention_mask": view.real_BL.long()}
    if sees:
        given["visual_attention_mask"] = (boxes != 0).any(2).long()
        lxmert = {"visual_feats": view.features_BNF, "visual_pos": boxes}
        given |= lxmert if name[0] == "L" else {"visual_embeds": view.features_BNF}
    elif name == "ViltForMaskedLM":
        given["pixel_values"] = view.image_BCHW
    with torch.no_grad():
        seen, said = task.model(view), theirs(**given)
        logits = task.heads["mlm"](seen.tokens_BLD, seen.word_weights_VD)
    wanted = said.logits if hasattr(said, "logits") else said.prediction_logits
    real = batch.real_BL
    torch.testing.assert_close(wanted[:, :12][real], logits[real], atol=1e-5, rtol=1e-5)
    if name != "ViltForMaskedLM":
        inner = getattr(theirs, theirs.base_model_prefix)(**given)
        pooled = inner.pooled_output if name[0] == "L" else inner.pooler_output
        torch.testing.assert_close(pooled, seen.pooled_BD, atol=1e-5, rtol=1e-5)


def test_what_would_compute_something_else_is_refused(text: Text, tmp_path: Path) -> None:
    for name, setting, value in (
        ("LxmertModel", "hidden_act", "relu"),
        ("VisualBertModel", "bypass_transformer", True),
        ("ViltModel", "qkv_bias", False),
    ):
        home = tmp_path / name
        saved(name, text, home, **SIZES.get(name, {}), **{setting: value})
        with pytest.raises(CheckpointError, match=f"{setting} is {value!r} there"):
            fresh_task(recipe(home), text)
    saved("RobertaModel", text, tmp_path / "roberta")
    with pytest.raises(CheckpointError, match="a 'roberta' cannot be started from"):
        recipe(tmp_path / "roberta")
    saved("BertModel", text, tmp_path / "bert")
    run = recipe(tmp_path / "bert", "{tokens: 12, heads: 4}")
    with pytest.raises(CheckpointError, match="num_attention_heads is 2 there and 4 in"):
        fresh_task(run, text)
    (tmp_path / "bert" / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    for shard in list((tmp_path / "bert").glob("model-*"))[:1]:
        shard.unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-.*Copy it too"):
        require_start(run.start_from or "")


def test_a_recipe_that_says_all_asks_nobody() -> None:
    """What it starts from need not be within reach of who plans it."""
    for name in ("lxmert_base", "visualbert_base", "vlp_easy"):
        assert find(name, ["start_from=s3://nowhere/at-all"]).name == name


WORDS: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "RobertaModel": {"max_position_embeddings": 22, "layer_norm_eps": 1e-12},
    "ElectraModel": {"embedding_size": 16},
    "DistilBertModel": {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 40},
}


@pytest.mark.parametrize("name", WORDS)
def test_words_begin_with_any_of_the_family(
    name: str, small: Callable[..., Run], text: Text, rows: Rows, tmp_path: Path
) -> None:
    theirs, batch = saved(name, text, tmp_path, **WORDS[name]), rows(4)
    size = "width: 16, inner: 40, heads: 2, depth: 2, tokens: 12, image_size: 16"
    spec = f"model={{kind: single_stream, {size}, order: post, visual: {{kind: none}}}}"
    task = small(spec, "objectives=[{kind: mlm}]").task(text).eval()
    assert start_words(task.model, str(tmp_path))
    with torch.no_grad():
        said = theirs(input_ids=batch.tokens_BL, attention_mask=batch.real_BL.long())
        found = task.model(task.look(batch)).tokens_BLD
    wanted = said.last_hidden_state[batch.real_BL]
    torch.testing.assert_close(found[batch.real_BL], wanted, atol=1e-5, rtol=1e-4)


def test_words_of_old_files_and_of_other_settings(
    small: Callable[..., Run], text: Text, tmp_path: Path
) -> None:
    """BERT's own file calls a norm's scale and shift gamma and beta."""
    saved("BertModel", text, tmp_path)
    size = "width: 16, inner: 40, heads: 2, depth: 2, tokens: 12, image_size: 16"
    spec = f"model={{kind: single_stream, {size}, order: post, visual: {{kind: none}}}}"
    task = small(spec, "objectives=[{kind: mlm}]").task(text)
    start_words(task.model, str(tmp_path))
    before = task.model.embed.norm.weight.clone()
    for file in tmp_path.glob("*.safetensors"):
        state = load_file(file)
        old = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): v for n, v in state.items()}
        save_file({n.replace("LayerNorm.bias", "LayerNorm.beta"): v for n, v in old.items()}, file)
    task.model.embed.norm.reset_parameters()
    start_words(task.model, str(tmp_path))
    assert torch.equal(task.model.embed.norm.weight, before)
    for setting, value in (
        ("hidden_act", "relu"),
        ("layer_norm_eps", 0.01),
        ("num_attention_heads", 4),
    ):
        saved("BertModel", text, tmp_path / setting, **{setting: value})
        with pytest.raises(RecipeError, match=f"{setting} is {value!r} there"):
            start_words(task.model, str(tmp_path / setting))
    saved("AlbertModel", text, tmp_path / "albert")
    with pytest.raises(RecipeError, match="a 'albert' is not BERT-like"):
        start_words(task.model, str(tmp_path / "albert"))
