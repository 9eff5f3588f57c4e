"""Adapters: nothing at first, only they are trained, merged and taken out to the bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, DataError, ExportError, RecipeError
from diptych.finetune.adapters import Dora, Loha, Lokr, Lora
from diptych.finetune.merge import compose, merge, merged, plain_weights
from diptych.finetune.parts import KINDS
from diptych.finetune.sides import Side, sides
from diptych.finetune.start import fresh_task, trained_task
from diptych.finetune.tuner import Tuner, layers
from diptych.pretrain.adapter import Site, adapt
from diptych.pretrain.checkpoint import open_checkpoint
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
Keep = Callable[..., RunDir]
SHAPES: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "channels": [8, 16], "groups": 4, "heads": 2, "width": 16},
    "dit": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
    "vlp": {"kind": "vlp", "width": 16, "depth": 1, "heads": 2, "stem": 4, "grid": 4},
}
LOW = ("lora", "dora", "lokr", "loha")


def recipe(model: str, *adapters: dict[str, Any], base: str = "/nowhere") -> Run:
    """A run of 16-pixel images; without adapters, the base's."""
    values: dict[str, Any] = {
        "name": f"{model}-adapted" if adapters else model,
        "model": SHAPES[model] | {"image_size": 16, "tokens": 12},
        "objectives": [{"kind": "mlm" if model == "vlp" else "ddpm"}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    if adapters:
        values |= {"adapters": list(adapters), "start_from": base}
    return parse_run(values, KINDS, source="test")


def make(run: Run, text: Text, spread: float = 0.0) -> Task:
    """The run's task on a base that says something; what is trained is moved by `spread`."""
    torch.manual_seed(0)
    task = run.task(text)
    for param in task.parameters():
        torch.nn.init.normal_(param, std=0.2)
    adapt(task, run.adapters, text)
    for param in task.parameters():
        if param.requires_grad and spread:
            param.data += spread * torch.randn(param.shape)
    return task.eval()


@torch.no_grad()
def said(task: Task, batch: Batch) -> Tensor:
    view = replace(task.look(batch), time_B=torch.arange(batch.rows) * 200.0)
    seen = task.model(view)
    return seen.said_BCHW if hasattr(seen, "said_BCHW") else seen.pooled_BD


@pytest.mark.parametrize("kind", LOW)
@pytest.mark.parametrize("model", SHAPES)
def test_it_says_nothing_at_first_and_merges_and_is_taken_out(
    model: str, kind: str, text: Text, rows: Rows
) -> None:
    run = recipe(model, {"kind": kind, "rank": 2, "alpha": 4})
    batch, base = rows(3), make(recipe(model), text)
    begun = said(make(run, text), batch)
    torch.testing.assert_close(begun, said(base, batch), atol=2e-5, rtol=1e-5)
    task = make(run, text, 0.2)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    moved = said(task, batch)
    assert (moved - begun).abs().max() > 1e-3
    undo = merge(task.model)
    torch.testing.assert_close(said(task, batch), moved, atol=1e-4, rtol=1e-4)
    undo()
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert torch.equal(said(task, batch), moved)
    alone, plain = merged(run, task, text)
    assert alone.adapters == () and plain.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(said(plain.eval(), batch), moved, atol=1e-4, rtol=1e-4)


def test_lora_of_words_and_convolutions_merges(text: Text, rows: Rows) -> None:
    """An embedding's and a convolution's low rank, beside those of linear layers."""
    targets = ["words", r"vision\.convolve\.\d+", r"blocks\.\d+\.qkv"]
    run = recipe("vlp", {"kind": "lora", "rank": 2, "alpha": 4, "targets": targets})
    batch, base, task = rows(3), make(recipe("vlp"), text), make(run, text, 0.3)
    trained = {name for name, param in task.model.named_parameters() if param.requires_grad}
    for part in ("words.lora_embedding_A", "vision.convolve.0.lora_B", "blocks.0.qkv.lora_A"):
        assert any(name.startswith(part) for name in trained), part
    moved = said(task, batch)
    assert not torch.allclose(moved, said(base, batch), atol=1e-3)
    _, alone = merged(run, task, text)
    torch.testing.assert_close(said(alone, batch), moved, atol=1e-5, rtol=1e-5)
    assert not torch.equal(alone.model.words.weight, base.model.words.weight)
    with pytest.raises(RecipeError, match="is the whole name of no module"):
        make(recipe("vlp", {"kind": "lokr", "rank": 2, "targets": ["words"]}), text)


@pytest.mark.parametrize("kind", [*LOW, "bias"])
def test_it_alone_is_trained(kind: str, text: Text, rows: Rows) -> None:
    task = make(recipe("dit", {"kind": kind, "on": ["denoiser"]}), text, 0.1).train()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(rows(4)).total.backward()
    trained = {name for name, param in task.named_parameters() if param.requires_grad}
    grads = {name for name, param in task.named_parameters() if param.grad is not None}
    assert grads == trained and not any(name.startswith("model.context") for name in trained)
    torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=1.0).step()
    moved = {n for n, value in task.state_dict().items() if not torch.equal(value, before[n])}
    assert moved and moved <= trained


def test_ranks_and_alphas_by_layer(text: Text) -> None:
    low: dict[str, Any] = {"kind": "lora", "rank": 2, "alpha": 4, "on": ["denoiser"]}
    low |= {"ranks": {r".*attn2\.to_k": 5}, "alphas": {r".*attn2\.to_k": 2.5}}
    model = make(recipe("unet", low), text).model
    block = model.unet.mid_block.attentions[0].transformer_blocks[0]
    assert block.attn2.to_k.r == {"lora0": 5} and block.attn2.to_k.scaling == {"lora0": 0.5}
    assert block.attn2.to_q.r == {"lora0": 2} and block.attn2.to_q.scaling == {"lora0": 2.0}


class Nested(nn.Module):
    """Modules whose names are the ends of others'."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.answer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.deep = nn.ModuleDict({"ask": nn.Linear(4, 4), "answer": nn.Linear(4, 4)})


@pytest.mark.parametrize("record_of", [Lora, Dora, Lokr, Loha])
def test_ranks_and_targets_are_of_whole_names(record_of: type[Tuner]) -> None:
    """In the run and in the config of an export, where peft itself reads them as ends of names."""
    import peft

    record = record_of(
        targets=("ask", r"deep\.ask", r"deep\.answer"), ranks={"ask": 2}, alphas={"ask": 7.0}
    )
    model = Nested()
    list(record.put(Site(model, lambda _: True, "mine", None)))
    side = Side("model", "", model, record)
    told = (
        {"ask": 2, "deep.ask": 4, "deep.answer": 4},
        {"ask": 7, "deep.ask": 4, "deep.answer": 4},
    )
    assert (side.ranks(), side.alphas()) == told
    config = peft.PeftConfig.from_peft_type(**side.settings())
    other = Nested()
    peft.inject_adapter_in_model(config, other)  # pyright: ignore[reportArgumentType]
    found = Side("model", "", other, record)
    assert (found.ranks(), found.alphas()) == told


def test_clips_layers_are_of_whole_names_with_any_transformers(text: Text) -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_model, self.projection = Nested(), nn.Linear(4, 4)

    record = Lora(targets=(r"text_model\.ask", r"text_model\.deep\.ask"), ranks={r".*deep.*": 2})
    model = Clip()
    list(record.put(Site(model, lambda _: True, "mine", None)))
    import peft

    config = peft.LoraConfig(**Side("text_encoder", "", model, record).settings())
    for other, prefix in ((Clip(), "text_model."), (Nested(), "")):
        peft.inject_adapter_in_model(config, other)
        found = Side("text_encoder", "", other, record)
        assert found.ranks() == {f"{prefix}ask": 4, f"{prefix}deep.ask": 2}


def test_several_adapters_of_several_kinds(text: Text, rows: Rows) -> None:
    run = recipe(
        "unet",
        {"kind": "lora", "on": ["denoiser"]},
        {"kind": "dora", "on": ["text"], "rank": 2},
        {"kind": "tokens", "words": {"<toy>": "picture"}},
    )
    larger = text.grown(run.new_words)
    task = make(run, larger, 0.2)
    kinds = {"lora0", "dora1", "rows"}
    trained = [name for name, param in task.named_parameters() if param.requires_grad]
    assert {next(k for k in kinds if k in name) for name in trained} == kinds
    ids, real = larger.encode(["a <toy> number"] * 3)
    batch = replace(rows(3), tokens_BL=ids, real_BL=real)
    moved = said(task, batch)
    _, plain = merged(run, task, larger)
    torch.testing.assert_close(said(plain.eval(), batch), moved, atol=1e-4, rtol=1e-4)
    for name in ("lora0", "dora1"):  # each is switched on
        for key, param in task.named_parameters():
            if f"lora_B.{name}" in key:
                param.data.zero_()
        assert not torch.equal(said(task, batch), moved), name


def test_new_words_are_all_that_textual_inversion_trains(text: Text, rows: Rows) -> None:
    run = recipe("dit", {"kind": "tokens", "words": {"<toy>": "picture number", "<Thing>": "a"}})
    larger = text.grown(run.new_words)
    task = make(run, larger).train()
    old = task.model.words.weight.clone()
    rows_ND = task.model.words.rows
    like = torch.tensor([text.tokenizer.token_to_id(word) for word in ("picture", "number")])
    assert torch.equal(rows_ND[0], old[like].mean(0)) and larger.size == text.size + 2
    ids, real = larger.encode(["a <toy> with <Thing>", "a picture", "<toy>", "number 1"])
    assert {larger.tokenizer.token_to_id(word) for word in run.new_words} <= set(ids[0].tolist())
    batch = replace(rows(4), tokens_BL=ids, real_BL=real)
    task(batch).total.backward()
    assert [n for n, p in task.named_parameters() if p.grad is not None] == ["model.words.rows"]
    torch.optim.AdamW([rows_ND], lr=0.1).step()
    assert torch.equal(plain_weights(task)["model.words.weight"][: text.size], old)
    other = replace(batch, tokens_BL=ids[1:2].expand(4, -1), real_BL=real[1:2].expand(4, -1))
    assert torch.equal(said(task, other), said(make(recipe("dit"), text).train(), other))


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "bias", "tokens"])
def test_a_run_stands_on_its_base_and_on_no_other(
    kind: str, text: Text, keep: Keep, rows: Rows
) -> None:
    base = keep(recipe("dit"), make(recipe("dit"), text), text)
    more: dict[str, Any] = {"words": {"<toy>": "picture"}} if kind == "tokens" else {}
    run = recipe("dit", {"kind": kind, **more}, base=base.url)
    larger = text.grown(run.new_words)
    task = fresh_task(run, larger)
    for param in task.parameters():
        if param.requires_grad:
            param.data += 0.1
    place = keep(run, task, larger)
    found = open_checkpoint(place.url)
    again = trained_task(run, larger, found)
    ids, real = larger.encode(["a <toy> number"] * 3)
    batch = replace(rows(3), tokens_BL=ids, real_BL=real)
    assert torch.equal(said(again, batch), said(task.eval(), batch))
    assert set(found.shapes) == {n for n, p in task.named_parameters() if p.requires_grad}
    longer = recipe("dit", {"kind": "bias"}, base=place.url)  # a run that goes on from this one
    torch.testing.assert_close(said(fresh_task(longer, larger).eval(), batch), said(again, batch))
    other = make(recipe("dit"), text)
    other.model.enter.bias.data += 1e-6
    stranger = keep(recipe("dit"), other, text)
    elsewhere = run.model_copy(update={"start_from": stranger.url})
    with pytest.raises(CheckpointError, match="was trained beside frozen weights"):
        trained_task(elsewhere, larger, found)


def test_full_is_no_adapter_where_it_is_on_all(text: Text) -> None:
    assert make(recipe("unet", {"kind": "full"}), text).base is None
    part = make(recipe("unet", {"kind": "full", "on": ["denoiser"]}), text)
    trained = {name for name, param in part.named_parameters() if param.requires_grad}
    assert part.base and all(name.startswith("model.unet.") for name in trained)


@pytest.mark.parametrize(
    ("adapter", "complaint"),
    [
        ({"kind": "lorra"}, "Did you mean 'lora'"),
        ({"kind": "lora", "on": ["text_encoder"]}, r"parts are: denoiser, text\."),
        ({"kind": "lora", "targets": ["to_q"]}, r"'to_q' is the whole name of no module .*There a"),
        ({"kind": "lora", "targets": ["("]}, r"'\(': "),
        ({"kind": "lora", "ranks": {"nothing": 2}}, "'nothing' is the whole name of no module"),
        ({"kind": "lora", "ranks": {".*": 0}}, "greater than or equal to 1"),
        ({"kind": "lora", "alphas": {".*": -3}}, "greater than 0"),
        ({"kind": "tokens", "words": {"<toy>": ""}}, "'<toy>' begins as no known word"),
        ({"kind": "tokens", "words": {"<toy>": "%"}}, "'<toy>' begins as no known word"),
        ({"kind": "bias", "targets": ["nothing"]}, "has a bias"),
    ],
)
def test_what_fits_nowhere_is_named(adapter: dict[str, Any], complaint: str, text: Text) -> None:
    with pytest.raises(RecipeError, match=complaint):
        run = recipe("unet", adapter)
        make(run, text.grown(run.new_words))


def test_adapters_need_a_base_and_room(text: Text) -> None:
    with pytest.raises(RecipeError, match=r"adapters \(lora\) stand on a base"):
        values = {"name": "x", "adapters": [{"kind": "lora"}], "objectives": [{"kind": "ddpm"}]}
        data = {"train": "/n", "tokenizer": "/n.json"}
        parse_run({**values, "model": SHAPES["dit"], "data": data}, KINDS, source="x")
    with pytest.raises(RecipeError, match=r"adapter 1 \(full\) trains weights that another"):
        make(recipe("dit", {"kind": "bias"}, {"kind": "full"}), text)
    with pytest.raises(DataError, match="'picture' is in the vocabulary already"):
        text.grown(["picture"])
    some = {"kind": "lora", "targets": [r".*attn\d\.to_q"]}  # all of which the other wants too
    for other in ({"kind": "dora"}, some):
        with pytest.raises(RecipeError, match=r"1' and 'lora0' before it both want.*to_q' \(8 s"):
            make(recipe("unet", some, other), text)
    elsewhere = {**some, "targets": [r".*attn\d\.to_k"]}
    assert len(layers(make(recipe("unet", some, elsewhere), text).model)) == 16
    words = {"kind": "lora", "targets": ["words"]}
    with pytest.raises(RecipeError, match="stands beside the word embedding already"):
        make(recipe("unet", words, {"kind": "tokens", "words": {"<a>": "a"}}), text.grown(["<a>"]))
    with pytest.raises(RecipeError, match="teaches a denoiser"):
        make(recipe("vlp", {"kind": "tokens", "words": {"<toy>": "a"}}), text.grown(["<toy>"]))


def test_a_grown_vocabulary_survives_its_file(text: Text) -> None:
    larger = text.grown(["<toy>"])
    again = tokens.from_text(larger.tokenizer.to_str(), text.length)
    ids, _ = again.encode(["a <toy> picture"])
    assert torch.equal(ids, larger.encode(["a <toy> picture"])[0])
    assert larger.tokenizer.token_to_id("<toy>") == text.size


def test_an_exported_folder_is_a_base(text: Text, tmp_path: Path) -> None:
    from diptych.finetune.export import folder

    base = make(recipe("vlp"), text)
    folder.write(tmp_path / "out", recipe("vlp"), base, text, {})
    task = fresh_task(recipe("vlp", {"kind": "lora"}, base=f"{tmp_path}/out"), text)
    ours = plain_weights(task)
    assert all(torch.equal(value, ours[name]) for name, value in base.state_dict().items())


def test_several_runs_are_composed_by_weight(text: Text, rows: Rows) -> None:
    base = make(recipe("dit"), text)
    kinds = ({"kind": "lora", "rank": 2}, {"kind": "bias"})
    one, two = (plain_weights(make(recipe("dit", kind), text, 0.2)) for kind in kinds)
    before = base.state_dict()
    assert all(torch.equal(v, before[n]) for n, v in compose(before, [(one, 0.0)]).items())
    made = compose(before, [(one, 1.0), (two, 0.5)])
    for name, value in made.items():
        wanted = one[name] + 0.5 * (two[name] - before[name])
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-6)
    new = plain_weights(
        make(recipe("dit", {"kind": "tokens", "words": {"<x>": "a"}}), text.grown(["<x>"]))
    )
    both = compose(before, [(one, 1.0), (new, 1.0)])
    assert len(both["model.words.weight"]) == text.size + 1
    wide = {**before, "model.enter.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"model\.enter\.bias is \(3,\) in a run"):
        compose(before, [(wide, 1.0)])


def test_an_adapter_on_words_is_in_no_file_for_diffusers(text: Text) -> None:
    run = recipe("unet", {"kind": "lora", "targets": ["words"]})
    with pytest.raises(ExportError, match=r"an adapter is on 'words'.*--to merged"):
        sides(run, make(run, text))
