"""Finished controls: beside their base and another, from the command line, and in diffusers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.config import digest
from diptych.data import index, storage
from diptych.data.batch import Batch
from diptych.data.pack import tar
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, ExportError, RecipeError
from diptych.finetune import export
from diptych.finetune.guided import draw, hint_of, open_control, wanted
from diptych.finetune.parts import KINDS
from diptych.finetune.sample import Painter, painter
from diptych.finetune.steering import ControlWatch, Kept, exam, keeps, recipe, tell
from diptych.finetune.target import find_target
from diptych.pretrain import checkpoint
from diptych.pretrain.checkpoint import base_digest
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.encoders import Canny, Layout, Palette
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.slices import put_slices
from diptych.pretrain.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
UNET = {"kind": "unet", "image_size": 16, "channels": [8, 8], "heads": 2, "groups": 4}
UNET |= {"width": 16, "tokens": 12}
HOW = Sampling(steps=2, guidance_scale=2)
CONTROLS: dict[str, dict[str, Any]] = {
    "controlnet": {"kind": "controlnet", "hint": {"kind": "canny"}},
    "t2i-adapter": {"kind": "t2i_adapter", "hint": {"kind": "canny"}, "blocks": 1},
}
Keep = Callable[..., RunDir]


def settings(name: str = "base", **other: Any) -> Run:
    values: dict[str, Any] = {
        "name": name,
        "model": UNET,
        "objectives": [{"kind": "ddpm"}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    return parse_run(values | other, KINDS, source="test")


def filled(run: Run, text: Text, seed: int = 0) -> Task:
    torch.manual_seed(seed)
    task = run.task(text)
    for param in task.parameters():
        torch.nn.init.normal_(param, std=0.1)
    return task.eval()


def base_of(text: Text, keep: Keep, seed: int = 0, **other: Any) -> Painter:
    run = settings(f"base-{seed}", **other)
    return painter(keep(run, filled(run, text, seed), text))


def finished(base: Painter, kind: str, home: Path, seed: int = 5, **other: Any) -> RunDir:
    """A control's run as training leaves it: its own weights, and the digest of the base."""
    run = settings(f"{kind}-{seed}", control=CONTROLS[kind], start_from=base.place.url, **other)
    task = run.task(base.text)
    task.model.load_state_dict(base.task.model.state_dict())
    torch.manual_seed(seed)
    assert task.control is not None
    for param in task.control.parameters():
        torch.nn.init.normal_(param, std=0.1)
    place = RunDir(storage.absolute(str(home / run.name)))
    place.create(run, {"data": "0" * 16})
    storage.write(place.at("tokenizer.json"), base.text.tokenizer.to_str().encode())
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    pieces = [(name, checkpoint.WEIGHT, 0, p.detach().view(-1)) for name, p in named]
    url = checkpoint.folder(place.url, 1)
    checkpoint.commit(
        place.url, 1, recipe=digest(run), base=base_digest(task), extra={},
        shapes={name: tuple(p.shape) for name, p in named},
        slices=put_slices(url, "attempt-1/rank-0.safetensors", pieces),
    )  # fmt: skip
    return place


def photo(shade: int = 250) -> np.ndarray:
    pixels = np.full((20, 24, 3), 20, np.uint8)
    pixels[5:15, 6:18] = shade
    return pixels


@pytest.mark.parametrize("kind", list(CONTROLS))
def test_a_finished_control_steers_its_base_and_another(
    kind: str, text: Text, keep: Keep, tmp_path: Path
) -> None:
    base, tuned = base_of(text, keep), base_of(text, keep, seed=1)
    place = finished(base, kind, tmp_path)
    port = open_control(place, base)
    hint = hint_of(port.record.hint, photo(), (16, 16)).expand(2, -1, -1, -1)
    alone = draw(base, ["a", "b"], HOW, [])
    assert torch.equal(draw(base, ["a", "b"], HOW, [(port, hint, 0.0)]), alone)
    assert not torch.equal(draw(base, ["a", "b"], HOW, [(port, hint, 1.0)]), alone)
    moved = open_control(place, tuned)
    for name, value in port.net.state_dict().items():
        assert torch.equal(moved.net.state_dict()[name], value), "unchanged"
    assert not torch.equal(
        draw(tuned, ["a", "b"], HOW, [(moved, hint, 1.0)]), draw(tuned, ["a", "b"], HOW, [])
    )
    other = base_of(text, keep, seed=2, model={**UNET, "channels": [8, 16]})
    with pytest.raises(CheckpointError, match="steers another base"):
        open_control(place, other)
    with pytest.raises(RecipeError, match="trained no control"):
        open_control(base.place, base)


def test_the_runs_own_control_is_refused_beside_other_frozen_weights(
    text: Text, keep: Keep, tmp_path: Path
) -> None:
    base = base_of(text, keep)
    place = finished(base, "controlnet", tmp_path)
    assert painter(place).task.control is not None
    other = base_of(text, keep, seed=9)
    file = Path(storage.local_path(place.at("recipe.yaml")))
    file.write_text(file.read_text().replace(base.place.url, other.place.url))
    with pytest.raises(CheckpointError, match="was trained beside frozen weights"):
        painter(place)


def test_sample_takes_controls(
    text: Text, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = base_of(text, keep)
    net, adapter = (finished(base, kind, tmp_path) for kind in CONTROLS)
    Image.fromarray(photo()).save("photo.png")

    def said(run: str, *controls: str) -> bytes:
        words = ["sample", run, "--prompt", "a", "--steps", "2", "--out", "out"]
        for each in controls:
            words += ["--control", each]
        found = CliRunner().invoke(app, words)
        assert found.exit_code == 0, found.output + str(found.exception)
        return (tmp_path / "out" / "00000.png").read_bytes()

    alone, one = said(base.place.url), said(base.place.url, f"{net.url}=photo.png")
    both = said(base.place.url, f"{net.url}=photo.png", f"{adapter.url}=photo.png@0.5")
    assert len({alone, one, both}) == 3
    assert said(net.url, "canny=photo.png") == one, "a control's run draws with its base"
    assert said(base.place.url, f"{net.url}=photo.png@0") == alone


def test_a_control_of_a_command_line_is_read() -> None:
    found = wanted("s3://b/run=me@home.png@0.7")
    assert (found.run, found.picture, found.weight) == ("s3://b/run", "me@home.png", 0.7)
    assert wanted("run=me@home.png").picture == "me@home.png"
    with pytest.raises(RecipeError, match="is not RUN=PICTURE"):
        wanted("photo.png")


@pytest.mark.parametrize("kind", list(CONTROLS))
def test_diffusers_alone_gives_the_same(
    kind: str, text: Text, keep: Keep, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    place = finished(base_of(text, keep), kind, tmp_path)
    found, target, out = painter(place), find_target(kind, export), tmp_path / "out"
    out.mkdir()
    target.require(found.run)
    target.write(out, found.run, found.task, found.text, {"run": place.name})
    assert "diffusers" in (out / "README.md").read_text()
    proof = target.prove(out, found.run, found.task, found.text, rows(3))
    assert max(proof["max_difference"].values()) == 0 and proof["largest_output"] > 0.01
    file = out / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = max(weights, key=lambda each: weights[each].numel())
    save_file({**weights, name: weights[name] + 0.1}, file, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="differs by"):
        target.prove(out, found.run, found.task, found.text, rows(3))
    other = next(each for each in CONTROLS if each != kind)
    with pytest.raises(ExportError, match=f"--to {other} holds"):
        find_target(other, export).require(found.run)


@pytest.mark.parametrize(
    "told", [{"classes": ["cat", "dog"], "placed": True}, {"text": "clip"}], ids=str
)
def test_diffusers_alone_gives_the_same_of_all_that_a_base_is_told(
    told: dict[str, Any], text: Text, keep: Keep, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    model = UNET | told
    place = finished(base_of(text, keep, model=model), "controlnet", tmp_path, model=model)
    found, target, out = painter(place), find_target("controlnet", export), tmp_path / "out"
    out.mkdir()
    batch = replace(rows(3), fields=({"cls": 0}, {"cls": 1}, {}))
    target.write(out, found.run, found.task, found.text, {})
    proof = target.prove(out, found.run, found.task, found.text, batch)
    assert max(proof["max_difference"].values()) == 0 and proof["largest_output"] > 0.01
    if "classes" in told:
        probe = load_file(out / "probe.safetensors")
        assert probe["in.classes"].tolist() == [0, 1, 2]
        assert {"in.text_embeds", "in.time_ids"} <= probe.keys()


def test_what_keeps_to_a_hint_is_measured() -> None:
    pictures = torch.from_numpy(np.stack([photo(), photo()[::-1].copy()]))
    for hint in (Canny(), Palette(cells=4)):
        told = torch.from_numpy(np.stack([hint.drawn(each.numpy()) for each in pictures]))
        assert keeps(hint, pictures, told) == 1
        blank = torch.zeros_like(pictures)
        assert keeps(hint, blank, told) < 0.9
    assert json.dumps(Kept(1, 1.0, 0.5, 0.2)._asdict())


def test_an_exam_reads_the_texts_of_its_data_and_the_page_has_them(
    text: Text, keep: Keep, tmp_path: Path
) -> None:
    base, file = base_of(text, keep), tmp_path / "one.png"
    Image.fromarray(photo()).save(file)
    members = {"png": file.read_bytes(), "json": json.dumps({"caption": "a picture"}).encode()}
    storage.write(str(tmp_path / "set" / "0.tar"), tar([("0", members), ("1", members)]))
    index.build([str(tmp_path / "set" / "0.tar")])
    asked = exam(base, str(tmp_path / "set"), Canny(), 2, "caption")
    assert asked.texts == ("a picture", "a picture")
    with pytest.raises(RecipeError, match="by `diptych train`"):
        exam(base, str(tmp_path / "set"), Layout(), 2)
    place = finished(base, "controlnet", tmp_path)
    watch = ControlWatch(place, base, Canny(), asked, HOW)
    assert [look.step for look in watch.catch_up()] == [1]
    page = storage.read(tell(watch, settings())).decode()
    assert "a picture" in page and "http" not in page


def test_the_recipe_of_a_control_is_its_bases(text: Text, keep: Keep) -> None:
    base = base_of(text, keep)
    net = recipe(base, "net", "/data", CONTROLS["controlnet"], steps=100, looks=4)
    adapter = recipe(base, "ad", "/data", CONTROLS["t2i-adapter"], steps=100, settings=["batch=4"])
    assert net.steps == 100 and net.checkpoint_steps == 25 and net.start_from == base.place.url
    (ddpm,) = net.objectives
    assert getattr(ddpm, "drop") == 0.5 and getattr(ddpm, "times") == "uniform"  # noqa: B009
    assert getattr(adapter.objectives[0], "times") == "cubic" and adapter.batch == 4  # noqa: B009
