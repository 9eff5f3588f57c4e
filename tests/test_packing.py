"""Packed rows give what padded ones give: losses, gradients, and everything that is read."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.pretrain import packing
from diptych.pretrain.packing import Side, bins_of, reach
from diptych.pretrain.run import Run
from diptych.pretrain.task import Losses, Task

Rows = Callable[..., Batch]

SIZE = "width: 16, heads: 2, image_size: 16, tokens: 12"
REGIONS = "visual: {kind: regions, count: 5, values: 6, geometry: 4}"
STREAMS = f"{{kind: two_stream, {SIZE}, text_depth: 2, visual_depth: 1, cross_depth: 2"
WIDE = "tied: false, visual_width: 24, visual_heads: 3, visual_inner: 20"
STREAM = f"{{kind: single_stream, {SIZE}, depth: 2"
MODELS = {
    "vlp": f"{{kind: vlp, {SIZE}, grid: 4, depth: 2, stem: 4",
    "vilt": f"{STREAM}, visual: {{kind: patches, patch: 4}}",
    "visual_bert": f"{STREAM}, order: post, {REGIONS}",
    "bert": f"{STREAM}, order: post, visual: {{kind: none}}",
    "lxmert": f"{STREAMS}, {REGIONS}",
    "vl_bert": f"{STREAM}, order: post, whole: true, {REGIONS}",
    "vilbert": f"{STREAMS}, {WIDE}, pair: product, {REGIONS}",
    "wide_albef": f"{STREAMS}, {WIDE}, shared: 8, {REGIONS}",
    "albef": f"{STREAMS}, tied: false, shared: 8, visual: {{kind: patches, patch: 4}}",
}
MASKED = "{kind: mrm, share: 0.4}, {kind: mlm, rate: 0.3}"
ALL = f"[{{kind: itm}}, {{kind: prefix, share: 0.3}}, {MASKED}, {{kind: wra}}]"
OBJECTIVES = {name: ALL for name in MODELS} | {
    "bert": "[{kind: itm}, {kind: mlm, seq2seq: 0.5}]",
    "albef": "[{kind: itm, hard: true}, {kind: contrastive}, {kind: mlm, seq2seq: 0.3}]",
}
OBJECTIVES["wide_albef"] = OBJECTIVES["albef"]


def batch(rows: Rows, text: Text) -> Batch:
    """Eight texts of 3 to 12 tokens, 0 to 5 regions."""
    words = "a picture with number 7 is it yes"
    texts = [" ".join(words.split()[:n]) for n in (1, 8, 3, 2, 5, 8, 1, 4)]
    ids, real = text.encode(texts)
    count = torch.tensor([5, 2, 0, 3, 5, 1, 4, 2])[:, None]
    there = torch.arange(5) < count
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(8, 5, 4, generator=generator).sort(2).values * there[..., None]
    features = torch.randn(8, 5, 6, generator=generator) * there[..., None]
    made = replace(rows(8), tokens_BL=ids, real_BL=real)
    hole_B = torch.arange(8) == 4
    return replace(made, arrays={"features": features, "boxes": boxes}, hole_B=hole_B)


def learn(task: Task, given: Batch) -> tuple[Losses, dict[str, torch.Tensor]]:
    losses = task(given)
    losses.total.backward()
    return losses, {n: p.grad for n, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_packed_is_padded(
    name: str, recompute: bool, small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    given, tasks = batch(rows, text), list[Task]()
    for packed in ("false", "true"):
        torch.manual_seed(0)
        model = f"model={MODELS[name]}, packed: {packed}}}"
        tasks.append(small(model, f"objectives={OBJECTIVES[name]}").task(text))
        for parameter in tasks[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    if recompute:
        tasks[1].recompute()
    (padded, wanted), (packed, found) = (learn(task, given) for task in tasks)
    one, two = float(padded.total.detach()), float(packed.total.detach())
    assert abs(one - two) <= 1e-6 * abs(one)
    assert {n: int(c) for n, (_, c) in padded.sums.items()} == {
        n: int(c) for n, (_, c) in packed.sums.items()
    }
    assert wanted.keys() == found.keys() and len(wanted) > 20
    for parameter, gradient in wanted.items():
        apart = float((gradient - found[parameter]).abs().max())
        assert apart <= 1e-5 * max(1.0, float(gradient.abs().max())), parameter


def test_regions_that_only_fill_up_say_the_same(
    small: Callable[..., Run], text: Text, rows: Rows
) -> None:
    """A row may have none but those, and a captioner then reads them."""
    given, found = batch(rows, text), list[torch.Tensor]()
    for packed in ("false", "true"):
        torch.manual_seed(0)
        model = f"model={MODELS['visual_bert']}, packed: {packed}}}"
        task = small(model, "objectives=[{kind: attend_tell, width: 8}]").task(text).eval()
        found += [task(given).total, task.model(task.look(given)).regions_BND]
    torch.testing.assert_close(found[:2], found[2:], atol=1e-6, rtol=1e-5)


def test_fewer_tokens_are_computed(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    """The perceptron sees real tokens alone, and is the only one to say so."""
    given, seen = batch(rows, text), list[int]()
    task = small(f"model={MODELS['bert']}, packed: true}}", "objectives=[{kind: mlm}]").task(text)
    task.model.layers[0].think.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape[:2].numel())
    )
    task(given)
    assert seen == [int(given.real_BL.sum())] and seen[0] < given.real_BL.numel() * 0.8


def test_one_long_row_makes_no_bin_longer() -> None:
    """Bins are as long as the longest row, and hardly more of them than needed."""
    lengths = torch.tensor([40, *[7, 5, 9, 11] * 20])
    side = Side(torch.arange(64) < lengths[:, None])
    [bins] = bins_of([side])
    assert bins.slots == 40
    assert bins.bins <= 1.1 * int(lengths.sum()) / 40 + 1
    found = reach(bins, bins)
    assert found.mask is not None
    seen_KC = found.mask[:, 0].sum(2)
    real_KC = bins.row_KC >= 0
    assert torch.equal(seen_KC[real_KC], lengths[bins.row_KC[real_KC]])
    x = torch.randn(1, int(lengths.sum()), 3)
    assert torch.equal(bins.empty(bins.fill(x)), x)


def test_the_way_into_bins_and_out_has_gradients() -> None:
    [bins] = bins_of([Side(torch.arange(3) < torch.tensor([2, 1, 3, 1])[:, None])])
    x = torch.randn(1, 7, 2, dtype=torch.float64, requires_grad=True)
    assert bins.row_KC.numel() == 9  # two are empty
    assert torch.autograd.gradcheck(lambda x: bins.fill(x).sin(), x)
    assert torch.autograd.gradcheck(lambda x: bins.empty(bins.fill(x).sin()), x)


def test_rows_that_fill_their_bins_need_no_mask() -> None:
    side = Side(torch.ones(3, 5, dtype=torch.bool))
    [bins] = bins_of([side])
    assert reach(bins, bins).mask is None
    whole = torch.randn(3, 5, 4)
    assert side.put(side.take(whole)).equal(whole)


def test_useful_tokens_are_counted(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    given = batch(rows, text)
    lxmert = small(f"model={MODELS['lxmert']}}}", "objectives=[{kind: itm}]").model
    whole = replace(given, hole_B=None)
    assert packing.useful(lxmert, whole) == (int(given.real_BL.sum()) + 22, 8 * 17)
    vilt = small(f"model={MODELS['vilt']}}}", "objectives=[{kind: itm}]").model
    words = int(given.real_BL.sum()) - int(given.real_BL[4].sum())
    assert packing.useful(vilt, given) == (words + 7 * 16, 8 * 28)


def test_each_word_sees_the_whole_image(small: Callable[..., Run], text: Text, rows: Rows) -> None:
    """VL-BERT: without a layer that looks across, words still change with the regions' mean."""
    torch.manual_seed(0)
    task = small(f"model={MODELS['vl_bert']}}}", "objectives=[{kind: mlm}]").task(text)
    given, embedded = batch(rows, text), list[torch.Tensor]()
    task.model.embed.norm.register_forward_hook(lambda _, __, said: embedded.append(said))
    shuffled = {name: array.flip(0) for name, array in given.arrays.items()}
    view = task.look(given)
    with torch.no_grad():
        task.model(view)
        task.model(task.look(replace(given, arrays=shuffled)))
    moved_BL = (embedded[0] - embedded[2]).abs().sum(2) > 1e-6  # 1 and 3 are of the regions
    assert moved_BL[0].all() and given.arrays["features"].shape[1] == 5
    no_region = {name: torch.zeros_like(array) for name, array in given.arrays.items()}
    with torch.no_grad():
        seen = task.model(task.look(replace(given, arrays=no_region)))
    assert seen.tokens_BLD.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("visual_width: 24", "tied weights look both ways at one width"),
        ("tied: false, visual_width: 25", "visual_width 25"),
        ("tied: false, visual_width: 9, visual_heads: 3", "or 16 where both sides meet"),
    ],
)
def test_widths_that_cannot_meet_are_refused(
    setting: str, complaint: str, small: Callable[..., Run]
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        small(f"model={STREAMS}, {setting}, {REGIONS}}}")
