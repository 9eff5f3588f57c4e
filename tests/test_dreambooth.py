"""DreamBooth: both means of the loss, masks, pictures of a person and of a class, advice."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data import index, storage
from diptych.data.batch import Batch
from diptych.data.hints import Wanted
from diptych.data.index import Manifest
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import Sample, tar
from diptych.data.plan import Plan, Source
from diptych.data.tokens import Text
from diptych.errors import DataError, RecipeError
from diptych.finetune.dreambooth import photos, prior
from diptych.finetune.dreambooth.advice import Look, advise
from diptych.finetune.dreambooth.recipe import Wishes
from diptych.finetune.dreambooth.story import ready, tell, unknown_words
from diptych.finetune.features import features, open_features
from diptych.finetune.metrics import subject
from diptych.finetune.metrics.edges import agreement
from diptych.finetune.metrics.prompts import read_prompts
from diptych.finetune.parts import KINDS
from diptych.finetune.sample import Painter, painter
from diptych.pretrain.diffusion.rows import squared_error
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.encoders import Grid, Palette
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]
UNET = {"kind": "unet", "image_size": 16, "channels": [8, 8], "heads": 2, "groups": 4}
UNET |= {"width": 16, "tokens": 12}
HOW = Sampling(steps=2, guidance_scale=1)
PROMPTS = Path("/work/shared/data/dreambooth-20.tar")


def settings(**other: Any) -> Run:
    values: dict[str, Any] = {
        "name": "base",
        "model": UNET,
        "objectives": [{"kind": "ddpm"}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    return parse_run(values | other, KINDS, source="test")


def filled(run: Run, text: Text) -> Task:
    torch.manual_seed(0)
    task = run.task(text)
    for param in task.parameters():
        torch.nn.init.normal_(param, std=0.1)
    return task


@pytest.fixture
def base(text: Text, keep: Callable[..., RunDir]) -> Painter:
    """A base that draws something, in its folder."""
    run = settings()
    return painter(keep(run, filled(run, text), text))


@pytest.mark.parametrize("world", [1, 2])
def test_the_loss_is_the_subjects_mean_and_lambda_times_the_classes(
    world: int, text: Text, samples: Samples, dataset: Dataset
) -> None:
    """L = E|x - x^|^2 + lambda E|x_pr - x^_pr|^2, to rounding, at any world size."""
    weight = 0.3
    mine, theirs = dataset([samples(3)], "mine"), dataset([samples(9, first=10)], "theirs")
    plan = Plan(
        [Source(mine, name="mine", loss=1.0), Source(theirs, name="theirs", loss=weight)], 0, 8
    )
    recipe = Recipe(text="txt", image_size=16, seed=0)
    task = filled(settings(), text)
    for step in range(3):
        totals: list[float] = []
        errors: dict[bool, list[float]] = {True: [], False: []}
        for rank in range(world):
            loader = Loader(plan, text, recipe, rank=rank, world=world, start=step, stop=step + 1)
            ((_, batch),) = list(loader)
            with torch.no_grad():
                losses = task(batch)
                _, scores = task.scores(batch)
            totals.append(float(losses.total))
            assert {"ddpm.loss.first", "ddpm.loss.others"} <= set(losses.sums)
            for key, error in zip(batch.keys, scores["ddpm"].loss_B.tolist(), strict=True):
                errors[key.startswith("mine")].append(error)
        assert len(errors[True]) == len(errors[False]) == 4
        wanted = np.mean(errors[True]) + weight * np.mean(errors[False])
        assert np.mean(totals) == pytest.approx(wanted, rel=1e-5)


def test_without_weights_all_rows_count_alike(
    text: Text, samples: Samples, dataset: Dataset
) -> None:
    plan = Plan(dataset([samples(4)]), 0, 4)
    ((_, batch),) = list(Loader(plan, text, Recipe(text="txt", image_size=16, seed=0), stop=1))
    assert batch.weight_B is None and batch.source_B is None


def test_a_mask_leaves_the_rest_out(rows: Callable[..., Batch], text: Text) -> None:
    said, right = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    mask_BHW = torch.zeros(2, 8, 8)
    mask_BHW[0, :4] = 1
    found = squared_error(said, right, mask_BHW)
    assert float(found[0]) == pytest.approx(float((said - right)[0, :, :4].square().mean()))
    assert float(found[1]) == 0
    whole = squared_error(said, right, torch.ones(2, 8, 8))
    torch.testing.assert_close(whole, squared_error(said, right))
    task, batch = filled(settings(), text).eval(), rows(2)
    changed = batch.image_BCHW.clone()
    changed[:, :, :8] = 255 - changed[:, :, :8]
    lower = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    lower[:, :, 8:] = 255
    with torch.no_grad():
        one = task.scores(replace(batch, hints={"mask": lower}))[1]["ddpm"].loss_B
        full = task.scores(batch)[1]["ddpm"].loss_B
    assert not torch.allclose(one, full)


def picture(path: Path, shade: int, size: tuple[int, int] = (30, 24)) -> None:
    pixels = np.full((size[1], size[0], 3), 30, np.uint8)
    pixels[6:18, 8:22] = (shade, 200, 255 - shade)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of a thing, two of them with masks in different places."""
    home = tmp_path / "photos"
    for number in range(3):
        picture(home / f"{number}.png", 80 * number)
        mask = np.zeros((24, 30), np.uint8)
        mask[6:18, 8:22] = 255
        place = home / "masks" / f"{number}.png" if number else home / "0.mask.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(place)
    return home


def test_a_plain_folder_becomes_a_dataset(folder: Path, tmp_path: Path, text: Text) -> None:
    found = photos.packed(str(folder), str(tmp_path / "out"), "a sks thing", masks=True)
    again = photos.packed(str(folder), str(tmp_path / "out"), "a sks thing", masks=True)
    assert found.samples == 3 and again.digest == found.digest
    recipe = Recipe(text="txt", image_size=16, seed=0, hints={"mask": Wanted(channels=1)})
    ((_, batch),) = list(Loader(Plan(found, 0, 3), text, recipe, stop=1))
    bright = (batch.image_BCHW[:, 1] > 128).float()
    mask = (batch.hints["mask"][:, 0] > 128).float()
    assert (bright - mask).abs().mean() < 0.05 and mask.mean() > 0.2
    other = photos.packed(str(folder), str(tmp_path / "out"), "another text")
    assert other.digest != found.digest
    (folder / "masks" / "2.png").unlink()
    with pytest.raises(DataError, match="no mask"):
        photos.packed(str(folder), str(tmp_path / "more"), "a sks thing", masks=True)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(size: tuple[int, int], shade: int = 255) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, shade).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (png((24, 30)), r"0.png \(mask of other proportions: 24 x 30 .* 30 x 24"),
        (png((64, 64)), "mask of other proportions"),
        (png((30, 24), 0), "empty mask"),
        (b"no picture", "damaged mask"),
        (npy(np.ones((24, 30))), "mask.npy is float64"),
    ],
)
def test_a_mask_that_is_not_its_pictures_is_named(
    folder: Path, tmp_path: Path, mask: bytes, told: str
) -> None:
    (folder / "0.mask.png").write_bytes(mask)
    with pytest.raises(DataError, match=told):
        photos.packed(str(folder), str(tmp_path / "out"), "a sks thing", masks=True)


@pytest.mark.parametrize("size", [(30, 24), (15, 12), (7, 6), (300, 240), (151, 121)])
def test_a_mask_may_be_smaller_or_larger(
    folder: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    (folder / "0.mask.png").write_bytes(png(size))
    found = photos.packed(str(folder), str(tmp_path / "out"), "a sks thing", masks=True)
    assert found.samples == 3
    (folder / "0.mask.png").write_bytes(npy(np.ones((size[1], size[0]), bool)))
    assert photos.packed(str(folder), str(tmp_path / "o"), "a thing", masks=True).samples == 3


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        photos.packed(str(tmp_path / "none"), str(tmp_path / "out"), "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        photos.packed(str(tmp_path / "empty"), str(tmp_path / "out"), "x")
    picture(tmp_path / "bad" / "a.png", 3)
    with pytest.raises(DataError, match=r"one picture, a\.png"):
        photos.packed(str(tmp_path / "bad"), str(tmp_path / "out"), "x")
    (tmp_path / "bad" / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "bad" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"IMG_1\.HEIC \(not a JPEG.*b\.jpg \(not a JPEG") as told:
        photos.packed(str(tmp_path / "bad"), str(tmp_path / "out"), "x")
    assert "max-skipped" not in str(told.value), "no option of this verb"
    for number in range(6):
        (tmp_path / "bad" / f"{number}.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"8 files cannot .*and 3 more in .*skipped\.jsonl"):
        photos.packed(str(tmp_path / "bad"), str(tmp_path / "out"), "x")


def test_whatever_a_folder_holds(tmp_path: Path, text: Text) -> None:
    """Turned, gray, CMYK, transparent, tiny, upper case and other alphabets: all become rows."""
    home = tmp_path / "mixed"
    for name in ("a.png", "B.JPG", "Hündchen 日本.jpeg", "c.WebP", "IMG.2024.01.jpg"):
        picture(home / name, 90)
    with Image.open(home / "a.png") as opened:
        image = opened.convert("RGB")
    for mode, name in (("L", "g.png"), ("RGBA", "t.png"), ("P", "p.png"), ("CMYK", "k.jpg")):
        image.convert(mode).save(home / name)
    Image.new("RGB", (1, 1)).save(home / "tiny.png")
    marked = Image.new("RGB", (30, 20))
    marked.paste((255, 255, 255), (0, 0, 15, 20))  # white on the left as it lies in the file
    turned = marked.getexif()
    turned[0x0112] = 6  # to be turned to the right: white on top
    marked.save(home / "turned.jpg", exif=turned, quality=95)
    (home / ".DS_Store").write_bytes(b"x")
    (home / "notes.txt").write_text("of no picture")
    found = photos.packed(str(home), str(tmp_path / "out"), "a sks thing")
    assert found.samples == 11
    recipe = Recipe(text="txt", image_size=16, seed=0)
    ((_, batch),) = list(Loader(Plan(found, 0, 11, shuffle=False), text, recipe, stop=1))
    rows = dict(zip(batch.keys, batch.image_BCHW.float(), strict=True))
    (upright,) = [image for key, image in rows.items() if "turned" in key]
    assert upright[:, :5].mean() > 220 and upright[:, -5:].mean() < 35


def test_subjects_are_taken_out_of_tars(tmp_path: Path, samples: Samples) -> None:
    found = samples(4)
    renamed = [
        (f"{'dog2' if n < 3 else 'cat'}/{n:02d}", members) for n, (_, members) in enumerate(found)
    ]
    storage.write(str(tmp_path / "all.tar"), tar(renamed))
    for source in (tmp_path / "all.tar", tmp_path):
        taken = photos.packed(str(source), str(tmp_path / "out"), "a sks dog", only="dog2/")
        assert taken.samples == 3


def test_class_pictures_go_on_and_are_shared(base: Painter, tmp_path: Path) -> None:
    home = str(tmp_path / "class")
    first = prior.drawn(base, "a thing", 18, home, HOW)
    assert first.samples == 18
    tars = sorted(Path(home).rglob("*.tar"))
    before = {path.name: path.read_bytes() for path in tars}
    tars[0].unlink()
    drawn: list[int] = []
    again = prior.drawn(base, "a thing", 18, home, HOW, told=drawn.append)
    assert {path.name: path.read_bytes() for path in tars} == before, "to the byte"
    assert sum(drawn) == 18 and again.digest == first.digest
    fewer = prior.drawn(base, "a thing", 16, home, HOW)
    assert fewer.samples == 16 and len(list(Path(home).rglob("*.tar"))) == len(tars)
    other = prior.drawn(base, "another thing", 16, home, HOW)
    assert other.url != fewer.url


def test_another_base_of_the_same_name_draws_its_own_class(
    base: Painter, text: Text, keep: Callable[..., RunDir], tmp_path: Path
) -> None:
    first = prior.drawn(base, "a thing", 1, str(tmp_path / "class"), HOW)
    with torch.no_grad():
        next(base.task.parameters()).add_(1)
    again = painter(keep(base.run, base.task, text))
    assert (again.place.name, again.step) == (base.place.name, base.step)
    assert prior.drawn(again, "a thing", 1, str(tmp_path / "class"), HOW).url != first.url


def test_measures_are_what_they_say() -> None:
    subject_MD = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    far, near = torch.tensor([[0.0, 1.0]] * 3), torch.tensor([[0.9, 0.3]] * 3)
    found = subject.fidelity(near, subject_MD)
    assert found.among == pytest.approx(0.8)
    assert found.similarity > subject.fidelity(far, subject_MD).similarity
    assert subject.drift(far, far, subject_MD) == pytest.approx(0)
    assert subject.drift(subject_MD, far, subject_MD) == pytest.approx(1)
    assert subject.diversity(near) == pytest.approx(0, abs=1e-6)
    assert subject.diversity(torch.eye(3)) == pytest.approx(1)
    assert subject.moved(torch.eye(2), torch.eye(2).flip(0)) == pytest.approx(1)
    half = (subject_MD.mean(0) + far[0]) / 2  # half of the way, but for its length
    assert 0.2 < subject.drift(half[None], far, subject_MD) < 0.8
    assert subject.drift(torch.tensor([[-0.6, 0.8]]), far, subject_MD) < 0
    with pytest.raises(DataError, match="does not tell the subject"):
        subject.drift(far, subject_MD, subject_MD)
    with pytest.raises(DataError, match="2 or more of a prompt"):
        subject.diversity(near[:1])


def test_edges_agree_within_a_tolerance() -> None:
    hint = np.zeros((20, 20), np.uint8)
    hint[5, 3:17] = 255
    shifted = np.roll(hint, 1, axis=0)
    assert agreement(hint, hint) == (1, 1, 1, 1)
    assert agreement(shifted, hint).f1 == 1 and agreement(shifted, hint, tolerance=0).f1 == 0
    half = hint.copy()
    half[5, 10:] = 0
    found = agreement(half, hint)
    assert found.precision == 1 and 0.5 < found.recall < 0.65
    assert agreement(np.zeros_like(hint), hint) == (0, 0, 0, 0)
    assert agreement(np.zeros_like(hint), np.zeros_like(hint)).f1 == 1


def looks(*rows: tuple[float, ...]) -> list[Look]:
    return [
        Look(int(step), similarity, 0.9, drift, *(rest or [1.0]))
        for step, similarity, drift, *rest in rows
    ]


@pytest.mark.parametrize(
    ("rows", "step", "said"),
    [
        ([(0, 0.3, 0), (10, 0.6, 0.1), (20, 0.7, 0.6)], 10, "Stop at step 10"),
        ([(0, 0.3, 0), (10, 0.5, 0.1), (20, 0.7, 0.2)], 20, "still rising"),
        ([(0, 0.3, 0), (10, 0.7, 0.1), (20, 0.7, 0.1)], 10, "as good as step 20"),
        ([(0, 0.3, 0), (10, 0.7, 0.9), (20, 0.8, 1.0)], 0, "By step 10 90% of the way"),
        ([(0, 0.3, 0), (10, 0.6, -0.1), (20, 0.7, -0.6)], 10, "away from the subject"),
        ([(0, 0.3, 0), (10, 0.6, 0.1, 0.8), (20, 0.7, 0.1, 0.2)], 10, "differ 20% as much"),
        ([(0, 0.3, 0), (10, 0.2, 0.0), (20, 0.1, 0.0)], 0, "Raise the learning rate"),
    ],
)
def test_advice_weighs_likeness_against_drift(
    rows: Sequence[tuple[float, ...]], step: int, said: str
) -> None:
    found = advise(looks(*rows))
    assert found.step == step and said in found.text


def test_the_prompts_of_the_data_set_are_read() -> None:
    if not PROMPTS.exists():
        pytest.skip(f"{PROMPTS} is not here")
    import tarfile

    with tarfile.open(PROMPTS) as archive:
        (name,) = [n for n in archive.getnames() if n.endswith("prompts_and_classes.txt")]
        file = archive.extractfile(name)
        assert file is not None
        found = read_prompts(file.read().decode())
    assert len(found.objects) == len(found.live) == 25 and found.classes["dog2"] == "dog"
    assert found.of("dog", "sks")[10] == "a sks dog wearing a red hat"
    assert found.of("teapot", "")[0] == "a teapot in the jungle"
    with pytest.raises(DataError, match="no prompts_and_classes"):
        read_prompts("nothing of the kind")


def test_a_run_is_made_ready_and_told(
    base: Painter, folder: Path, tmp_path: Path, text: Text, keep: Callable[..., RunDir]
) -> None:
    wishes = Wishes(class_word="thing", class_images=4, steps=4, looks=2, batch=3, masks=True)
    place = RunDir(storage.absolute(str(tmp_path / "runs" / "mine")))
    how = {"how": HOW, "count": 2}
    made = ready(base, str(folder), place, wishes, Palette(cells=2).open(), **how)
    run = made.run
    assert [s.loss for s in run.data.sources] == [1.0, 1.0] and run.batch == 4
    assert run.start_from == base.place.url and run.data.hints == {"mask": "sample"}
    assert run.checkpoint_steps == 2 and run.steps == 4
    assert index.open_manifest(run.data.sources[1].url).samples == 4
    task = filled(run, text)
    fine = keep(run.model_copy(update={"adapters": (), "start_from": None}), task, text, 4)
    watch = replace(made.watch, place=fine)
    advice, url = tell(replace(made, watch=watch))
    page = storage.read(url).decode()
    assert "http" not in page.replace("http://www.w3.org", "") and page.count("data:image/png") >= 3
    assert advice.text.partition(":")[0] in page and "a sks thing" in page
    assert [look.step for look in watch.looks()] == [0, 4]
    assert watch.looks()[0].drift == 0
    rows = json.dumps([look._asdict() for look in watch.looks()])
    tell(replace(made, watch=watch))
    assert json.dumps([look._asdict() for look in watch.looks()]) == rows, "looked at once"


def test_class_pictures_may_have_guidance_of_their_own(
    base: Painter, folder: Path, tmp_path: Path
) -> None:
    wishes = Wishes(class_word="thing", class_images=2, steps=2, looks=1)
    place = RunDir(storage.absolute(str(tmp_path / "runs" / "mine")))
    how = HOW.model_copy(update={"guidance_scale": 4.0})
    told: list[str] = []
    for asked in (wishes, *(wishes.model_copy(update={"class_guidance": s}) for s in (1.0, 4.0))):
        made = ready(base, str(folder), place, asked, Palette(cells=2).open(), how=how, count=2)
        assert made.prior is not None and made.how == how
        assert made.run.data.pixels.resize == 16, "a drawn picture is not enlarged"
        told.append(made.prior.digest)
    assert told[0] == told[1] != told[2], "by default 1, whatever that of all samples"


def test_class_pictures_may_be_real_ones(
    base: Painter, folder: Path, tmp_path: Path, samples: Samples
) -> None:
    others = str(tmp_path / "others.tar")
    storage.write(others, tar([*samples(5), ("a/person", samples(1)[0][1])]))
    wishes = Wishes(class_word="picture", class_from=others, steps=2, looks=1, masks=True)
    wishes = wishes.model_copy(update={"class_only": "0"})
    place = RunDir(storage.absolute(str(tmp_path / "runs" / "mine")))
    made = ready(base, str(folder), place, wishes, Palette(cells=2).open(), how=HOW, count=2)
    assert made.prior is not None and made.prior.samples == 5, "not the 100 of class_images"
    assert made.run.data.sources[1].url == made.prior.url.removesuffix("/index")
    recipe = Recipe(text="txt", image_size=16, seed=0, hints={"mask": Wanted(channels=1)})
    ((_, batch),) = list(Loader(Plan(made.prior, 0, 5), base.text, recipe, stop=1))
    assert {base.text.decode(ids.tolist()) for ids in batch.tokens_BL} == {"a picture"}
    assert (batch.hints["mask"] == 255).all(), "the whole of a picture is the class's"
    storage.write(others, tar([]))
    with pytest.raises(DataError, match="pictures of the class"):
        ready(base, str(folder), place, wishes, Palette(cells=2).open(), how=HOW, count=2)


def test_wishes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold"):
        Wishes(class_word="dog", prompt="a photo of {word}")
    with pytest.raises(ValueError, match="class_only is of class_from"):
        Wishes(class_word="dog", class_only="n02099601_")
    with pytest.raises(ValueError, match="prior_loss_weight is 0"):
        Wishes(class_word="dog", class_from="./dogs", prior_loss_weight=0)
    assert Wishes(class_word="golden retriever", prompt="{identifier} {word}").class_prompt == (
        "golden retriever"
    )


def test_words_that_the_base_does_not_know_are_said(text: Text) -> None:
    known = max((w for w in text.tokenizer.get_vocab() if w.isalnum()), key=len)
    assert unknown_words(text, known) == []
    assert unknown_words(text, f"{known} 字 {known}{known}") == ["字", 2 * known]


def test_features_of_pictures(base: Painter) -> None:
    images: Tensor = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    assert features(Grid().open(), images).shape == (3, 512)


def test_a_finished_classifier_is_an_encoder_of_likeness(
    base: Painter, text: Text, keep: Callable[..., RunDir], rows: Callable[..., Batch]
) -> None:
    """Its features are what its last layer tells classes by; of clean images, whatever the rest."""
    spec = {"kind": "noisy_classifier", "image_size": 16, "channels": [8, 8], "heads": 2}
    run = settings(
        name="judge",
        model=spec | {"groups": 4, "tokens": 12, "classes": ["red", "blue"]},
        objectives=[{"kind": "noised_class"}],
    )
    task = filled(run, text)
    place = keep(run, task, text)
    images: Tensor = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    found = features(open_features(f"run={place.url}", base), images)
    assert found.shape == (3, 8)
    with torch.no_grad():
        shown = replace(rows(3), image_BCHW=images.permute(0, 3, 1, 2), fields=({"cls": 1},) * 3)
        model: Any = task.eval().model
        torch.testing.assert_close(model.leave(found), model(task.look(shown)).logits_BC)
    with pytest.raises(RecipeError, match="Name one of noisy_classifier"):
        open_features(f"run={base.place.url}", base)
    assert open_features("palette,cells=2", base).name == "palette"
