"""Images drawn from a checkpoint, kept, and judged: the same bytes whoever draws them."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.cluster import drawing
from diptych.cluster.shapes import Shape
from diptych.config import plain
from diptych.data import index, storage
from diptych.data.holes import quarantine
from diptych.data.pack import Sample, tar
from diptych.data.records import scan
from diptych.data.tokens import Text
from diptych.errors import DataError, RecipeError, RunError
from diptych.finetune import exhibit, judge
from diptych.finetune.appraise import Panel, appraise
from diptych.finetune.exhibit import Hung
from diptych.finetune.guided import seeing
from diptych.finetune.parts import KINDS
from diptych.finetune.score import Finished, finished
from diptych.pretrain import encoders
from diptych.pretrain.diffusion.generate import generate
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.hint import Hint
from diptych.pretrain.optim import adamw
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir

COLORS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 210)}
ASK = "what color is it?"
Keep = Callable[..., RunDir]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sample(number: int) -> Sample:
    color, png = list(COLORS)[number % 3], io.BytesIO()
    Image.new("RGB", (16, 16), COLORS[color]).save(png, "PNG")
    record = {"question": ASK, "answer": color, "color": color, "objects": [[2, 2, 9, 14]]}
    members = {"png": png.getvalue(), "txt": f"a {color} picture".encode()}
    return f"{number:03d}", {**members, "json": json.dumps(record).encode()}


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("colors"))
    storage.write(f"{url}/00000.tar", tar(sample(number) for number in range(30)))
    index.build([f"{url}/00000.tar"])
    return url


@pytest.fixture(scope="module")
def denoiser(keep: Keep, text: Text, colors: str) -> Finished:
    values = plain(vlp_easy()) | {"name": "draws", "objectives": [{"kind": "ddpm"}]}
    values["model"] = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 4}
    values["model"] |= {"image_size": 16, "tokens": 12}
    values["data"] |= {"train": colors, "test": colors}
    run = revise(values, [], KINDS, source="draws")
    torch.manual_seed(0)
    return finished(keep(run, run.task(text), text))


@pytest.fixture(scope="module")
def classifier(keep: Keep, text: Text, colors: str, small: Callable[..., Run]) -> Finished:
    run = small(
        "name=colors", "objectives=[{kind: vqa, answers: [red, green, blue]}]",
        f"data.train={colors}", f"data.test={colors}", "data.text=question",
    )  # fmt: skip
    torch.manual_seed(0)
    task = run.task(text)
    batch = next(finished(keep(run, task, text)).batches(rows=30))
    optimiser = adamw(task, run.optim)
    for _ in range(25):
        losses = task(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    return finished(keep(run, task, text))


def hung(colors: str, **changes: Any) -> Hung:
    how = Sampling(steps=2, guidance_scale=2.0, seed=3)
    return Hung(**{"prompts": colors, "samples": 10, "how": how, "shard": 4, **changes})


def digests(url: str) -> dict[str, str]:
    names = [name for name in storage.children(url) if name.endswith(".tar")]
    found = {name: hashlib.sha256(storage.read(storage.join(url, name))) for name in names}
    return {name: each.hexdigest() for name, each in found.items()}


ONE = Shape(workers=1)


def test_a_gallery_goes_on_from_what_is_there(denoiser: Finished, colors: str) -> None:
    wish, told = hung(colors), list[int]()
    url = drawing.draw(denoiser, wish, ONE, told=told.append)
    assert sum(told) == 10
    whole = digests(url)
    assert sorted(whole) == ["00000.tar", "00001.tar", "00002.tar"]
    storage.delete(storage.join(url, "00001.tar"))
    assert exhibit.missing(wish, url) == [1]
    told.clear()
    assert drawing.draw(denoiser, wish, ONE, told=told.append) == url
    assert told == [6, 4] and digests(url) == whole
    other = exhibit.place(denoiser, hung(colors, how=Sampling(steps=2, seed=4)))
    assert other != url  # other images, another folder


def test_an_image_carries_what_it_should_show(denoiser: Finished, colors: str) -> None:
    wish = hung(colors)
    url = drawing.draw(denoiser, wish, ONE)
    asked = exhibit.prompts(wish, "txt")
    assert len(asked) == 10 and len({prompt.key for prompt in asked}) == 10
    batches = list(judge.pictures(index.open_manifest(url), denoiser.text, 16, 99))
    shown = [picture.record for batch in batches for picture in batch]
    assert [record["of"] for record in shown] == [prompt.key for prompt in asked]
    assert {record["color"] for record in shown} == set(COLORS)
    many = exhibit.prompts(hung(colors, samples=70), "txt")
    assert many[0] == many[30] == many[60]  # the texts again, when they run out
    with pytest.raises(DataError, match="no text 'caption'"):
        exhibit.prompts(wish, "caption")


def test_samples_in_quarantine_are_not_drawn(tmp_path: Path, colors: str) -> None:
    whole = shutil.copytree(colors, tmp_path / "colors")
    manifest = index.open_manifest(str(whole))
    asked = exhibit.prompts(hung(str(whole), samples=70), "txt")
    keys = {prompt.key for prompt in asked}
    for key in sorted(keys)[1:]:
        shard, name = key.split("/")
        quarantine(manifest, shard, name, "bad")
    assert {p.key for p in exhibit.prompts(hung(str(whole)), "txt")} == {min(keys)}
    quarantine(manifest, "00000.tar", min(keys).removeprefix("00000.tar/"), "bad")
    with pytest.raises(DataError, match="no sample to draw"):
        exhibit.prompts(hung(str(whole)), "txt")


@pytest.mark.parametrize("hint", [encoders.Palette(cells=2), encoders.Layout()])
def test_a_model_that_sees_a_hint_sees_that_of_each_picture(
    hint: Hint, keep: Keep, text: Text, colors: str, denoiser: Finished
) -> None:
    values: dict[str, Any] = plain(denoiser.run) | {"name": f"sees-{hint.kind}"}
    values["model"] |= {"beside": {"kind": hint.kind, **plain(hint)}}
    run = revise(values, [], KINDS, source="sees")
    torch.manual_seed(0)
    task = run.task(text)
    for param in task.model.parameters():
        torch.nn.init.normal_(param, std=0.1)
    found, wish = finished(keep(run, task, text)), hung(colors)
    url, asked = exhibit.place(found, wish), exhibit.prompts(wish, "txt")
    assert exhibit.draw(found, wish, asked, url, 0) == wish.shard
    shard = io.BytesIO(storage.read(f"{url}/00000.tar"))
    pngs = {record.key: blobs["png"] for record, blobs in scan(shard, shard=url)}
    image = Image.open(io.BytesIO(pngs["000001"]))

    def alone(hint_CHW: np.ndarray) -> torch.Tensor:
        change = partial(seeing, hint=hint, hint_BCHW=torch.from_numpy(hint_CHW)[None])
        texts = [asked[1].text]
        return generate(found.task, found.text, texts, wish.how, first=1, change=change)[0].int()

    picture = np.full((16, 16, 3), COLORS[asked[1].record["color"]], np.uint8)
    own_CHW = hint.drawn(picture, asked[1].record)
    drawn = torch.from_numpy(np.array(image)).int()
    assert (alone(own_CHW) - drawn).abs().max() <= 1
    assert (alone(255 - own_CHW) - drawn).abs().max() > 1


def test_scores_stand_beside_their_floor(
    denoiser: Finished, classifier: Finished, colors: str
) -> None:
    network = judge.network(encoders.Grid(backbone="test_resnet"))
    question = judge.question(f"{ASK}=color")
    panel = Panel([network], classifier, [question], reals=12, train=colors)
    url = drawing.draw(denoiser, hung(colors), ONE)
    rows = appraise(denoiser, hung(colors), url, panel)
    assert rows["real.accuracy.color"] == 1.0 and rows["accuracy.color"] < 0.8
    assert rows["frechet.grid"] > 3 * rows["real.frechet.grid"] >= 0
    assert rows["kernel.grid"] > 0 and rows["precision.grid"] < 0.5
    assert {"ddpm.loss", "recall.grid", "copied.grid", "nearest.grid"} <= set(rows)
    assert not any(name.startswith(("fid", "kid")) for name in rows)
    assert json.loads(storage.read(storage.join(url, "scores.json"))) == rows


def test_real_images_pass_for_themselves(classifier: Finished, denoiser: Finished) -> None:
    """The judge of real images held against the same images: no distance, all copies."""
    network = judge.network(encoders.Grid(backbone="test_resnet"))
    real = judge.features(network, judge.pictures(denoiser.test, denoiser.text, 16, 30))[0]
    rows = judge.compare(network, real, real, real)
    assert rows["frechet.grid"] == pytest.approx(0, abs=1e-6)
    assert rows["precision.grid"] == rows["recall.grid"] == 1.0
    assert rows["nearest.grid"] == 0


def test_what_cannot_be_asked_is_refused(
    denoiser: Finished, classifier: Finished, colors: str
) -> None:
    url = drawing.draw(denoiser, hung(colors), ONE)
    with pytest.raises(RunError, match="--ask needs --classifier"):
        appraise(denoiser, hung(colors), url, Panel(questions=[judge.question("x=y")], losses=0))
    with pytest.raises(RecipeError, match=r"has no answer for\. It knows: red, green, blue"):
        questions = [judge.Question(ASK, "shape")]
        appraise(denoiser, hung(colors), url, Panel([], classifier, questions, losses=0))
    with pytest.raises(RecipeError, match="QUESTION=FIELD"):
        judge.question("what color is it?")
    with pytest.raises(RecipeError, match="sees no images"):
        judge.network(encoders.Text(weights="/nowhere"))


@pytest.mark.cluster
def test_ray_tasks_draw_the_same_bytes(
    denoiser: Finished, colors: str, ray_here: None, tmp_path: Path
) -> None:
    url = drawing.draw(denoiser, hung(colors), ONE)
    whole = digests(url)
    for name in whole:
        storage.delete(storage.join(url, name))
    drawing.there(denoiser, hung(colors), url, Shape(workers=2), lambda: False, lambda n: None)
    assert digests(url) == whole
