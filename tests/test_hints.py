"""Hints: drawn as said, cached by sample, and cut and flipped as the picture is."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config import kinds, plain
from diptych.data import index, storage
from diptych.data.hints import Wanted
from diptych.data.index import Manifest
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import Sample, tar
from diptych.data.plan import Plan
from diptych.data.precompute import precompute
from diptych.data.tokens import Text
from diptych.data.transforms import Pixels
from diptych.errors import RecipeError, ShardError, StaleCacheError
from diptych.pretrain import encoders
from diptych.pretrain.encoder import find_encoder
from diptych.pretrain.encoders import Canny, Layout, Palette, Scribble, SoftEdges
from diptych.pretrain.hint import Hint

KINDS = kinds(encoders)


def picture(number: int, width: int = 48, height: int = 40) -> np.ndarray:
    """A bright rectangle on dark ground, at another place for each number. (H, W, 3)."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    left, top = 5 + number % 12, 4 + number % 9
    pixels[top : top + 17, left : left + 14] = (250, 240, 60 + number)
    return pixels


def samples(count: int, **sizes: int) -> list[Sample]:
    made: list[Sample] = []
    for number in range(count):
        pixels = picture(number, **sizes)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        mask = io.BytesIO()
        np.save(mask, (pixels[..., 0] > 100).astype(np.uint8) * 255)
        objects = [{"bbox": [5 + number % 12, 4 + number % 9, 14, 17], "label": "thing"}]
        members = {
            "png": file.getvalue(),
            "txt": b"a thing",
            "json": json.dumps({"objects": objects}).encode(),
            "mask.npy": mask.getvalue(),
        }
        made.append((f"{number:04d}", members))
    return made


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    urls = [str(tmp_path / "set" / f"{number:05d}.tar") for number in range(2)]
    found = samples(14)
    for url, part in zip(urls, (found[:8], found[8:]), strict=True):
        storage.write(url, tar(part))
    return index.build(urls)


def cached(source: Manifest, hint: Hint, out: Path, size: int) -> Wanted:
    spec = hint.spec(sizes=[(size, size)])
    precompute(source, hint.open(), spec, str(out), batch=4)
    expect = {"encoder": hint.kind, "encoder_digest": hint.digest()}
    return Wanted(channels=hint.channels, urls=(str(out),), expect=expect)


def loaded(
    source: Manifest, text: Text, wanted: dict[str, Wanted], *, world: int = 1, **pixels: Any
) -> dict[str, tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    recipe = Recipe(text="txt", image_size=24, seed=3, pixels=Pixels(**pixels), hints=wanted)
    plan = Plan(source, 3, 4)
    rows: dict[str, Any] = {}
    for rank in range(world):
        for step, batch in Loader(plan, text, recipe, stop=6, rank=rank, world=world):
            for place, key in enumerate(batch.keys):
                hints = {name: hint[place] for name, hint in batch.hints.items()}
                rows[f"{step} {key}"] = batch.image_BCHW[place], hints
    return rows


@pytest.mark.parametrize(
    ("thing", "lit"),
    [
        ({"bbox": [10, 10, 20, 30], "segmentation": []}, 21 * 31),
        ({"bbox": [0, 0, 1e12, 49]}, 200 * 50),
        ([-1e12, 90, 9, float(10**10)], 10 * 10),
    ],
)
def test_annotations_of_odd_kinds_are_drawn(thing: Any, lit: int) -> None:
    drawn = Layout().drawn(np.zeros((100, 200, 3), np.uint8), {"objects": [thing]})
    assert int((drawn.max(0) > 0).sum()) == lit


@pytest.mark.parametrize(
    "thing", [[0, 0, float("nan"), 9], [0, 0, float("inf"), 9], {"segmentation": [[]]}]
)
def test_annotations_without_corners_are_refused(thing: Any) -> None:
    with pytest.raises(RecipeError, match="no corners"):
        Layout().drawn(np.zeros((9, 9, 3), np.uint8), {"objects": [thing]})


def bright(image_CHW: torch.Tensor) -> torch.Tensor:
    return (image_CHW[0] > 128).float()


def test_hints_are_cut_and_flipped_as_their_picture(
    source: Manifest, text: Text, tmp_path: Path
) -> None:
    layout = Layout()
    wanted = {
        "layout": cached(source, layout, tmp_path / "layout", 32),
        "mask": Wanted(channels=1),
        "canny": cached(source, Canny(), tmp_path / "canny", 32),
    }
    rows = loaded(source, text, wanted, resize=32, crop="random", flip=0.5)
    flips: set[bool] = set()
    for image_CHW, hints in rows.values():
        seen = bright(image_CHW)
        assert hints["layout"].shape == (3, 24, 24) and hints["canny"].shape == (1, 24, 24)
        # A box drawn at 32 pixels rounds its corners; the mask is resized like the picture.
        assert ((hints["layout"].amax(0) > 0).float() - seen).abs().mean() < 0.13
        assert (bright(hints["mask"]) - seen).abs().mean() < 0.02
        across = seen.diff(dim=1).abs()
        assert hints["canny"].float().amax() == 255 or across.sum() == 0
        flips.add(bool(across.sum() > 0))
    assert True in flips
    shifted = loaded(source, text, wanted, resize=32, crop="center")
    assert any(not torch.equal(rows[key][0], shifted[key][0]) for key in rows)


def test_hints_do_not_depend_on_the_world_size(
    source: Manifest, text: Text, tmp_path: Path
) -> None:
    wanted = {"soft_edges": cached(source, SoftEdges(), tmp_path / "soft", 32)}
    how = {"resize": 32, "crop": "random", "flip": 0.5}
    one, two = (loaded(source, text, wanted, world=world, **how) for world in (1, 2))
    assert one.keys() == two.keys() and len(one) == 24
    for key, (image_CHW, hints) in one.items():
        assert torch.equal(image_CHW, two[key][0])
        assert torch.equal(hints["soft_edges"], two[key][1]["soft_edges"])


def test_a_block_larger_than_the_memory_is_read_all_the_same(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are long where those of most blocks are short, so their mean does not tell."""
    urls = [str(tmp_path / "set" / f"{number:05d}.tar") for number in range(2)]
    for url, part in zip(urls, (samples(4, width=800), samples(48)[4:]), strict=True):
        storage.write(url, tar(part))
    source = index.build(urls)
    wanted = {"canny": cached(source, Canny(), tmp_path / "canny", 32)}
    expected = loaded(source, text, wanted, resize=32)
    monkeypatch.setattr("diptych.data.hints._MEMORY", 50_000)
    found = loaded(source, text, wanted, resize=32)
    assert any(key.partition(" ")[2].startswith("00000.tar") for key in found)
    for key, (_, pictures) in expected.items():
        assert torch.equal(found[key][1]["canny"], pictures["canny"])


def test_a_cache_of_another_size_or_hint_is_refused(
    source: Manifest, text: Text, tmp_path: Path
) -> None:
    small = {"canny": cached(source, Canny(), tmp_path / "small", 24)}
    with pytest.raises(StaleCacheError, match="Make it with --size 32x32"):
        loaded(source, text, small, resize=32, crop="random")
    other = Canny(low=10, high=20)
    wanted = Wanted(channels=1, urls=small["canny"].urls, expect={"encoder_digest": other.digest()})
    with pytest.raises(StaleCacheError, match="was made with encoder_digest"):
        loaded(source, text, {"canny": wanted})
    with pytest.raises(RecipeError, match="2 caches for 1 sources"):
        two = Wanted(channels=1, urls=small["canny"].urls * 2)
        loaded(source, text, {"canny": two})
    with pytest.raises(ShardError, match=r"it has no depth.npy, and no cache is named"):
        loaded(source, text, {"depth": Wanted(channels=1)})


def test_a_cache_goes_on_and_is_made_once(source: Manifest, tmp_path: Path) -> None:
    hint = Scribble(sigma=1)
    spec = hint.spec(sizes=[(24, 24)])
    first = precompute(source, hint.open(), spec, str(tmp_path / "s"))
    again = precompute(source, hint.open(), spec, str(tmp_path / "s"))
    assert [done.fresh for done in first] == [True, True]
    assert [done.fresh for done in again] == [False, False]
    assert plain(spec)["whole"] is True


HINTS: list[Hint] = [Canny(), SoftEdges(), Scribble(), Palette(cells=4)]


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: hint.kind)
def test_a_hint_shows_where_things_end(hint: Hint) -> None:
    flat = np.full((32, 40, 3), 90, np.uint8)
    nothing = hint.drawn(flat)
    assert nothing.shape == (hint.channels, 32, 40) and nothing.dtype == np.uint8
    assert (nothing == (90 if hint.kind == "palette" else 0)).all()
    drawn = hint.drawn(picture(4, 40, 32))
    inside, outside = drawn[:, 14, 15], drawn[:, 30, 36]
    if hint.kind == "palette":
        assert inside[0] > 200 and outside[0] < 40
    else:
        assert drawn[0, 14, 7:11].max() > 150  # the left border of the rectangle is at 9
        assert inside.max() < 100 and outside.max() < 100


def test_scribbles_are_thicker_and_leave_specks_out() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:40, 8:40] = 255
    pixels[54:57, 54:57] = 255
    edges, strokes = Canny().drawn(pixels), Scribble(sigma=1, shortest=20).drawn(pixels)
    assert strokes[0, :45, :45].sum() > 2 * edges[0, :45, :45].sum()
    assert edges[0, 50:, 50:].any() and not strokes[0, 50:, 50:].any()


def test_layouts_read_the_usual_annotations() -> None:
    blank = np.zeros((20, 40, 3), np.uint8)
    plainly = Layout(field="things").drawn(blank, {"things": [[10, 0, 20, 10]]}, (80, 40))
    assert (plainly[:, 2, 7] > 0).any() and not plainly[:, 2, 15].any()  # pixels of the whole image
    shares = Layout(field="things", units="shares").drawn(blank, {"things": [[0, 0, 0.5, 1]]})
    assert (shares[:, 10, 5] > 0).any() and not shares[:, 10, 30].any()
    coco = {"bbox": [20, 0, 10, 20], "category_id": 3}
    shape = {"segmentation": [[0, 0, 10, 0, 0, 20]], "category_id": 4}
    two = Layout(field="things").drawn(blank, {"things": [coco, shape]})
    assert (two[:, 1, 1] != two[:, 1, 25]).any() and not two[:, 15, 9].any()
    with pytest.raises(RecipeError, match="no list 'objects'; it has things"):
        Layout().drawn(blank, {"things": []})
    with pytest.raises(RecipeError, match="is no box of four numbers"):
        Layout(field="things").drawn(blank, {"things": [[1, 2, 3]]})


def test_live_hints_are_those_of_the_picture_alone() -> None:
    rows = torch.from_numpy(np.stack([picture(n, 24, 24).transpose(2, 0, 1) for n in range(3)]))
    live = Canny().live(rows)
    assert live.shape == (3, 1, 24, 24)
    assert torch.equal(live[2, 0], torch.from_numpy(Canny().drawn(picture(2, 24, 24))[0]))
    with pytest.raises(RecipeError, match="drawn from annotations of whole pictures"):
        Layout().live(rows)


def test_hints_are_encoders_of_the_command_line() -> None:
    made = find_encoder("canny", ["low=50", "high=90"], KINDS)
    assert isinstance(made, Canny) and made.low == 50
    assert made.digest() != Canny().digest() == Canny().digest()
    with pytest.raises(RecipeError, match=r"low 300.* is above high 200"):
        find_encoder("canny", ["low=300"], KINDS)
