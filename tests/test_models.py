"""Models of one stream and of two, with every way to see."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.start import fresh_task
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
Make = Callable[..., Task]

SIZE = "width: 16, heads: 2, image_size: 16, tokens: 12"
TWO = f"model={{kind: two_stream, {SIZE}, text_depth: 1, visual_depth: 1, cross_depth: 2"
ONE = f"model={{kind: single_stream, {SIZE}, depth: 2"
PATCHES = "visual: {kind: patches, patch: 4}"
REGIONS = "visual: {kind: regions, count: 5, values: 6"
CNN = "visual: {kind: cnn, network: test_efficientnet_gn, stride: 8"
SEES = {"patches": PATCHES, "regions": REGIONS + "}", "boxless": REGIONS + ", geometry: 0}"}
MODELS = {
    f"{name} {sees}": f"{kind}, {SEES[sees]}}}"
    for name, kind in (("two", TWO), ("one", ONE))
    for sees in SEES
}
MODELS["one post"] = f"{ONE}, order: post, {PATCHES}}}"
MODELS["two untied"] = f"{TWO}, tied: false, shared: 4, {PATCHES}}}"


@pytest.fixture
def task(small: Callable[..., Run], text: Text) -> Make:
    """`task(model, "objectives=..."")`: a small task, always initialised alike."""

    def make(*settings: str) -> Task:
        torch.manual_seed(0)
        return small(*settings).task(text)

    return make


def with_regions(batch: Batch, count: int = 5) -> Batch:
    """The batch with 3 to 5 regions in each row, and a teacher of 7 classes."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(batch.rows, count, 6, generator=generator)
    corners = torch.rand(batch.rows, count, 4, generator=generator).sort(2).values
    boxes = corners[..., [0, 1, 2, 3]]
    teacher = torch.rand(batch.rows, count, 7, generator=generator)
    real = torch.arange(count) < 3 + torch.arange(batch.rows)[:, None] % 3
    arrays = {"features": features, "boxes": boxes, "teacher": teacher}
    return replace(batch, arrays={name: a * real[..., None] for name, a in arrays.items()})


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_and_its_slices_add_up(name: str, task: Make, rows: Rows) -> None:
    objectives = "[{kind: itm}, {kind: mrm, share: 0.5}, {kind: mlm}, {kind: wra}]"
    if "untied" in name:
        objectives = objectives.replace("{kind: itm}", "{kind: itm, hard: true}")
    whole, parts = (task(MODELS[name], f"objectives={objectives}") for _ in range(2))
    batch = with_regions(rows(8))
    one = whole(batch)
    one.total.backward()
    two = [parts(batch.take(first, first + 4)) for first in (0, 4)]
    torch.stack([part.total / 2 for part in two]).sum().backward()
    for key, (total, count) in one.sums.items():
        assert float(total) == pytest.approx(sum(float(p.sums[key][0]) for p in two), 1e-4), key
        assert int(count) == sum(int(p.sums[key][1]) for p in two), key
    unused = {n for n, p in whole.named_parameters() if p.grad is None}
    assert all(n.startswith("model.share") for n in unused)
    for (n, ours), theirs in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=n)
    optimiser = torch.optim.AdamW(whole.parameters(), 3e-3)
    first = float(one.total.detach())
    for _ in range(25):
        losses = whole(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert float(whole(batch).total.detach()) < 0.8 * first


@pytest.mark.parametrize("name", MODELS)
def test_padding_of_words_and_of_regions_changes_nothing(name: str, task: Make, rows: Rows) -> None:
    found, batch = task(MODELS[name], "objectives=[{kind: itm}]").eval(), with_regions(rows(3))
    seen = found.model(found.look(batch))
    long = int(batch.real_BL.sum(1).max())
    view = found.look(
        replace(batch, tokens_BL=batch.tokens_BL[:, :long], real_BL=batch.real_BL[:, :long])
    )
    if view.features_BNF is not None:
        real = (batch.arrays["boxes"] != 0).any(2, keepdim=True)
        view = replace(view, features_BNF=torch.where(real, view.features_BNF, 9.0))
    again = found.model(view)
    torch.testing.assert_close(again.pooled_BD, seen.pooled_BD, atol=1e-6, rtol=1e-5)
    assert seen.tokens_BLD.shape == (3, 12, 16)
    assert seen.regions_BND.shape == (3, found.sizes.regions, 16)


@pytest.mark.parametrize("name", MODELS)
def test_regions_in_any_order_are_the_same_but_for_their_places(
    name: str, task: Make, rows: Rows
) -> None:
    found, batch = task(MODELS[name], "objectives=[{kind: itm}]").eval(), with_regions(rows(3))
    one = found.model(found.look(batch)).pooled_BD
    arrays = {key: array.flip(1) for key, array in batch.arrays.items()}
    flipped = replace(batch, arrays=arrays, image_BCHW=batch.image_BCHW.flip(2))
    same = torch.allclose(one, found.model(found.look(flipped)).pooled_BD, atol=1e-6)
    assert same == ("patches" not in MODELS[name])


@pytest.mark.parametrize("name", ["two patches", "one patches", "two regions", "one post"])
def test_a_caption_is_read_from_left_to_right(name: str, task: Make, rows: Rows) -> None:
    found, batch = task(MODELS[name], "objectives=[{kind: prefix}]").eval(), with_regions(rows(4))
    view = replace(found.look(batch), causal_B=torch.tensor([True, False] * 2))
    later = view.tokens_BL.clone()
    later[:, 5:] = later[:, 5:].roll(1, 0)
    one, two = found.model(view), found.model(replace(view, tokens_BL=later))
    moved = (one.tokens_BLD - two.tokens_BLD).abs().amax(2) > 1e-5
    assert not moved[::2, :5].any() and moved[1::2, :5].all() and moved[:, 5:].any()
    still = (one.regions_BND - two.regions_BND).abs().amax((1, 2)) < 1e-6
    assert still.tolist() == [True, False] * 2


def test_a_row_without_regions_is_still_a_number(task: Make, rows: Rows) -> None:
    for name in ("two regions", "one regions"):
        found = task(MODELS[name], "objectives=[{kind: mrm, share: 1.0}, {kind: wra}]")
        batch = with_regions(rows(4))
        arrays = {key: array.clone() for key, array in batch.arrays.items()}
        for array in arrays.values():
            array[1] = 0
        losses = found(replace(batch, arrays=arrays))
        losses.total.backward()
        assert losses.total.isfinite()
        assert [int(losses.sums[f"{kind}.loss"][1]) for kind in ("mrm", "wra")] == [3, 3]
        grads = [p.grad for p in found.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("form", ["classes", "distribution"])
def test_masked_regions_against_a_teacher(form: str, task: Make, rows: Rows) -> None:
    mrm = f"{{kind: mrm, share: 1.0, rate: 0.4, form: {form}, classes: 7}}"
    found, batch = task(MODELS["two regions"], f"objectives=[{mrm}]"), with_regions(rows(6))
    with torch.no_grad():
        seen, scores = found.scores(batch)
    hidden = seen.view.targets["mrm.hidden"]
    features = seen.view.features_BNF
    assert features is not None and hidden.any(1).all() and (features[hidden] == 0).all()
    assert not hidden[(batch.arrays["boxes"] == 0).all(2)].any()
    logits = found.heads["mrm"](seen.regions_BND).log_softmax(2)
    for row in range(6):
        losses: list[Tensor] = []
        for region in hidden[row].nonzero()[:, 0].tolist():
            teacher = batch.arrays["teacher"][row, region]
            share = teacher / teacher.sum()
            if form == "classes":
                losses.append(-logits[row, region, teacher.argmax()])
            else:
                losses.append((share * (share.log() - logits[row, region])).sum())
        expected = torch.stack(losses).mean().detach()
        torch.testing.assert_close(scores["mrm"].loss_B[row], expected)


def test_random_cells_are_seen_in_training_only(task: Make, rows: Rows) -> None:
    spec = f"{ONE}, {CNN}, sample: 3}}}}".replace("image_size: 16", "image_size: 32")
    found = task(spec, "objectives=[{kind: mlm}]")
    batch = rows(4)
    batch = replace(batch, image_BCHW=batch.image_BCHW.repeat(1, 1, 2, 2))
    seen = found.model(found.look(batch))
    assert seen.regions_BND.shape == (4, 3, 16)
    half = found.model(found.look(batch.take(2, 4)))
    torch.testing.assert_close(half.regions_BND, seen.regions_BND[2:], atol=1e-5, rtol=1e-4)
    assert found.eval().model(found.look(batch)).regions_BND.shape == (4, 16, 16)
    with pytest.raises(RecipeError, match="do not sample"):
        task(spec, "objectives=[{kind: mrm}]")


@pytest.mark.parametrize(
    ("network", "stride"),
    [("test_efficientnet_gn", 8), ("test_convnext2", 8), ("test_vit", 16)],
)
def test_a_network_begins_with_timms_weights(
    network: str, stride: int, small: Callable[..., Run], rows: Rows, text: Text, tmp_path: Path
) -> None:
    """Its pixels are timm's own then; whatever wrapper gives the maps, names of weights agree."""
    torch.manual_seed(7)
    theirs: Any = timm.create_model(network, num_classes=5)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    visual = f"{{kind: cnn, network: {network}, stride: {stride}, weights: {tmp_path}}}"
    model = f"{ONE}, visual: {visual}}}".replace("image_size: 16", "image_size: 64")
    run = small(model, "objectives=[{kind: mlm}]")
    vision = fresh_task(run, text).model.vision
    whole = theirs.state_dict()
    named = {name.replace(".", "_"): value for name, value in whole.items()}
    for name, value in vision.network.state_dict().items():
        bare = name.removeprefix("model.")
        if bare != "pos_embed":  # which timm makes as large as the picture
            assert torch.equal(value, whole.get(bare, named.get(bare.replace(".", "_")))), name
    batch = replace(rows(2), image_BCHW=rows(2).image_BCHW.repeat(1, 1, 4, 4))
    image_BCHW = run.task(text).look(batch).image_BCHW
    config: Any = timm.get_pretrained_cfg(network)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    seen_BCHW = (image_BCHW - vision.shift) * vision.scale
    torch.testing.assert_close(seen_BCHW, (batch.image_BCHW / 255 - mean) / std)
    seen_as = f"network: {network}, stride: {stride}"
    other = small(
        model.replace(seen_as, "network: resnet50_gn, stride: 16"), "objectives=[{kind: mlm}]"
    )
    with pytest.raises(RecipeError, match="does not hold timm's weights of resnet50_gn"):
        fresh_task(other, text)


def test_a_map_with_its_channels_last_is_read_cell_by_cell(task: Make, rows: Rows) -> None:
    """As Swin's; whose input has one size, too."""
    swin = "visual: {kind: cnn, network: swin_tiny_patch4_window7_224, stride: 16}"
    spec = f"{ONE}, {swin}}}".replace("image_size: 16", "image_size: 64")
    found, batch = task(spec, "objectives=[{kind: mlm}]"), rows(2)
    batch = replace(batch, image_BCHW=batch.image_BCHW.repeat(1, 1, 4, 4))
    vision, view = found.model.vision.eval(), found.look(batch)
    map_BHWC = vision.network(view.image_BCHW)[-1]
    cell_BD = vision.norm(vision.project(map_BHWC[:, 1, 2])) + vision.places[4 + 2]
    torch.testing.assert_close(vision(view)[:, 4 + 2], cell_BD, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", ["stem: 6", "width: 10"])
def test_sizes_that_no_group_norm_takes_are_refused(size: str, small: Callable[..., Run]) -> None:
    name, value = size.split(": ")
    with pytest.raises(RecipeError, match=f"{name} {value} is not a multiple of 4"):
        small(f"model.{name}={value}")


@pytest.mark.parametrize(
    ("visual", "said"),
    [
        ("{kind: patches, patch: 5}", "not a multiple of patch 5"),
        ("{kind: cnn, network: resnet18, stride: 16}", "batch norms"),
        ("{kind: cnn, network: nosuch, stride: 16}", "no feature maps of 'nosuch'"),
        ("{kind: cnn, network: resnet50_gn, stride: 1}", "not 1"),
        ("{kind: cnn, stride: 16, sample: 7}", "more than the 1 cells"),
        ("{kind: patch}", "Did you mean 'patches'"),
    ],
)
def test_what_cannot_be_seen_is_refused(visual: str, said: str, task: Make) -> None:
    with pytest.raises(RecipeError, match=said):
        task(f"{ONE}, visual: {visual}}}", "objectives=[{kind: mlm}]")
