"""An export of a small trained model: proven in a clean process, and every change found out."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diptych.config import digest
from diptych.data import index, storage
from diptych.data.index import Manifest
from diptych.data.pack import Sample, tar
from diptych.data.tokens import Text
from diptych.errors import DataError, DiptychError, ExportError, RecipeError, RunError, ShardError
from diptych.finetune.export import folder
from diptych.finetune.export.folder import Loaded, load
from diptych.finetune.prove import TOLERANCE, check
from diptych.finetune.score import Finished, finished, predictions, score, unread
from diptych.finetune.ship import ship
from diptych.finetune.target import local_folder
from diptych.pretrain.optim import adamw
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

COLORS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 210)}
QUESTION = "what color is it?"


def picture(color: str, size: int = 16) -> Image.Image:
    return Image.new("RGB", (size, size), COLORS[color])


def sample(number: int) -> Sample:
    color, png = list(COLORS)[number % 3], io.BytesIO()
    picture(color).save(png, "PNG")
    record = {"question": QUESTION, "answer": color}
    members = {"png": png.getvalue(), "json": json.dumps(record).encode()}
    return f"{number:03d}", members


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 24 plain squares, indexed."""
    url = str(tmp_path_factory.mktemp("colors"))
    storage.write(f"{url}/00000.tar", tar(sample(number) for number in range(24)))
    manifest: Manifest = index.build([f"{url}/00000.tar"])
    assert manifest.samples == 24
    return url


@pytest.fixture(scope="module")
def found(
    small: Callable[..., Run], keep: Callable[..., RunDir], text: Text, colors: str
) -> Finished:
    """A run that learned the colors, opened as `export` opens it."""
    run = small(
        "name=colors", "objectives=[{kind: vqa, answers: [red, green, blue]}]",
        f"data.train={colors}", f"data.test={colors}", "data.text=question",
    )  # fmt: skip
    torch.manual_seed(0)
    task = run.task(text)
    blank = finished(keep(run, task, text))
    batch = next(blank.batches(rows=24))
    optimiser = adamw(task, run.optim)
    for _ in range(25):
        losses = task(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    return finished(keep(run, task, text))


def test_scores_by_a_field_of_the_records(found: Finished) -> None:
    scores = score(found, control=False, by="answer")
    parts = [scores[f"answer={color}.vqa.accuracy"] for color in COLORS]
    assert sum(parts) / 3 == pytest.approx(scores["vqa.accuracy"])  # 8 samples of each
    apart = [scores[f"answer={color}.vqa.loss"] for color in COLORS]
    assert sum(apart) / 3 == pytest.approx(scores["vqa.loss"], rel=1e-5)
    assert len(set(apart)) == 3
    with pytest.raises(DataError, match="has no field 'kind'; it has: answer, question"):
        score(found, by="kind")


@pytest.fixture(scope="module")
def proven(found: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export with its proof, made by the real clean process; not to be touched."""
    out = tmp_path_factory.mktemp("export") / "colors"
    ship(found, "diptych", out)
    return out


@pytest.fixture
def copy(proven: Path, tmp_path: Path) -> Path:
    """A copy of the proven export, to be changed."""
    return Path(shutil.copytree(proven, tmp_path / "copy"))


def test_the_folder_holds_what_it_says_and_no_pickle(proven: Path, found: Finished) -> None:
    names = {file.name for file in proven.iterdir()}
    assert names == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json"),
        *("probe.safetensors", "proof.json"),
    }
    config = json.loads((proven / "config.json").read_text())
    assert config["digest"] == digest(found.run)
    weights = load_file(proven / "model.safetensors")
    assert {name: tuple(w.shape) for name, w in weights.items()} == dict(found.checkpoint.shapes)
    card = (proven / "README.md").read_text()
    assert all(word in card for word in ("colors", "vqa", "folder import load", digest(found.run)))


def test_the_proof_was_made_by_another_process(proven: Path) -> None:
    proof = json.loads((proven / "proof.json").read_text())
    assert proof["process"] != os.getpid()
    assert set(proof["max_difference"]) == {"pooled", "tokens", "regions", "vqa.logits"}
    assert max(proof["max_difference"].values()) <= TOLERANCE
    assert proof["rows"] == 24
    assert proof["sha256"] == folder.digests(proven)
    assert proof["loader"] == "diptych.finetune.export.folder.load"


def test_it_answers_questions_about_images(proven: Path) -> None:
    model = load(proven)
    assert model.answer([picture("blue")], [QUESTION]) == ["blue"]
    three = [picture("green", 64), picture("red", 40), picture("blue", 16).convert("RGBA")]
    assert model.answer(three, [QUESTION] * 3) == ["green", "red", "blue"]
    assert load(str(proven)).answer(three[:1], [QUESTION]) == ["green"]


def test_it_computes_what_was_trained(proven: Path, found: Finished) -> None:
    model = load(proven)
    assert not model.task.training
    batch = next(found.batches(limit=6, rows=6))
    ours, theirs = model.outputs(batch), Loaded(found.run, found.text, found.task).outputs(batch)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert predictions(found, batch) == ["red", "green", "blue"] * 2
    assert score(found, control=False)["vqa.accuracy"] == 1.0


def test_it_loads_elsewhere(copy: Path, proven: Path) -> None:
    shutil.copytree(copy, copy.parent / "moved folder")
    assert load(copy.parent / "moved folder").run == load(proven).run
    assert check(copy)["rows"] == 24  # the proof can be repeated


# Every change is found out, by whoever loads it and by whoever repeats the proof.


def refused(out: Path, said: str) -> None:
    for look in (load, check):
        with pytest.raises(ExportError, match=said):
            look(out)


def flip(file: Path, place: int, bit: int = 1) -> None:
    blob = bytearray(file.read_bytes())
    blob[place] ^= bit
    file.write_bytes(blob)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_weight_bit_is_caught(copy: Path, part: float) -> None:
    """The lowest bit of one weight: no output moves by as much as the tolerance."""
    file = copy / "model.safetensors"
    head = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    weights = (file.stat().st_size - head) // 4 - 1
    flip(file, head + 4 * int(part * weights))
    refused(copy, r"model\.safetensors changed since it was proven")


def test_a_flipped_weight_is_caught_by_the_outputs_too(copy: Path) -> None:
    """Someone who changes the weights may well delete the proof."""
    (copy / "proof.json").unlink()
    weights = load_file(copy / "model.safetensors")
    name = "model.blocks.0.out.weight"
    weights[name][0, 0] += 0.5
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ExportError, match=r"differs by .* from the trained model \(allowed 1e-05"):
        check(copy)


def test_a_weight_that_is_no_number_is_caught(copy: Path) -> None:
    """NaN in the last output only; no comparison with it is ever true."""
    (copy / "proof.json").unlink()
    weights = load_file(copy / "model.safetensors")
    weights["heads.vqa.3.bias"][1] = torch.nan
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ExportError, match=r"vqa\.logits differs by nan"):
        check(copy)


def rename(weights: dict[str, Any]) -> None:
    weights["model.words.heavy"] = weights.pop("model.words.weight")


def cut(weights: dict[str, Any]) -> None:
    weights["model.places"] = weights["model.places"][:-1].clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename, "model.words.weight"),
        (lambda weights: weights.pop("model.norm.bias"), "model.norm.bias"),
        (lambda weights: weights.update(extra=torch.ones(2)), "extra"),
        (cut, "model.places"),
    ],
    ids=["renamed", "missing", "extra", "another shape"],
)
def test_a_renamed_tensor_is_caught(
    copy: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")
    refused(copy, "changed since it was proven")
    (copy / "proof.json").unlink()
    refused(copy, rf"(?s)model\.safetensors does not fit config\.json.*{said}")


class Canary:
    """Leaves a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "more/state.PKL", "notes.txt", "weights"]
)
def test_a_pickle_in_the_folder_is_caught_and_never_read(
    copy: Path, tmp_path: Path, name: str
) -> None:
    file = copy / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ExportError, match=rf"holds {file.name}, which may be a pickle"):
        check(copy)
    load(copy)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pickle_in_the_place_of_a_file_is_caught(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refused(copy, "changed since it was proven|may be a pickle")
    (copy / "proof.json").unlink()
    refused(copy, "is not an exported folder|may be a pickle")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe["objectives"][0]["answers"].reverse(),
        lambda recipe: recipe["model"].update(streams="text"),
        lambda recipe: recipe["model"].update(heads=4),
        lambda recipe: recipe.update(seed=5),
    ],
    ids=["answers", "streams", "heads", "seed"],
)
def test_a_changed_recipe_is_caught(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """All of them still fit the weights."""
    config = json.loads((copy / "config.json").read_text())
    change(config["recipe"])
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, r"config\.json changed since it was proven")


def test_a_changed_tokenizer_is_caught(copy: Path) -> None:
    file = copy / "tokenizer.json"
    file.write_text(file.read_text().replace('"picture"', '"pixture"'))
    refused(copy, r"tokenizer\.json changed since it was proven")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_damaged_file_is_one_error(copy: Path, name: str) -> None:
    (copy / "proof.json").unlink()
    good = (copy / name).read_bytes()
    for blob in (b"", good[: len(good) // 2], b"\xff" * 40, b"{}", b"[]", b"null"):
        (copy / name).write_bytes(blob)
        with pytest.raises(DiptychError, match=r"not an exported folder|tokenizer\.json"):
            load(copy)
    (copy / name).unlink()
    with pytest.raises(ExportError, match="is not an exported folder"):
        load(copy)


@pytest.mark.parametrize("blob", [b"", b"[]", b"{}", b'{"sha256": "0"}', b'{"sha256": {}}'])
def test_a_damaged_proof_proves_nothing(copy: Path, blob: bytes) -> None:
    (copy / "proof.json").write_bytes(blob)
    refused(copy, "is not an exported folder")


def test_another_format_is_named(copy: Path) -> None:
    (copy / "proof.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": 99}))
    refused(copy, "format 99, this Diptych reads 1")


# Writing.


def test_a_folder_in_use_is_not_written_to(found: Finished, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ExportError, match="is not empty"):
        ship(found, "diptych", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_is_written_to_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from diptych.__main__ import app

    monkeypatch.chdir(tmp_path)
    out = "s3://bucket/exports"
    done = CliRunner().invoke(app, ["export", "mine", "--to", "diptych", "--out", out])
    assert isinstance(done.exception, ExportError) and "local folder" in str(done.exception)
    assert not list(tmp_path.iterdir())
    assert local_folder(f"file://{tmp_path}/out") == tmp_path / "out"
    assert local_folder("exported/my run") == Path("exported/my run")


def test_data_is_named_for_a_proof_that_reads_samples(
    small: Callable[..., Run], text: Text, keep: Callable[..., RunDir], tmp_path: Path, colors: str
) -> None:
    from typer.testing import CliRunner

    from diptych.__main__ import app

    run = small(f"data.train={colors}", "data.test=null", "data.text=question")
    place = keep(run, run.task(text), text)
    with pytest.raises(RunError, match="names no test data"):
        ship(unread(place), "diptych", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    words = ["export", place.url, "--to", "diptych", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--data", colors])
    assert done.exit_code == 0, done.output
    assert f"| {colors} |" in (tmp_path / "out" / "README.md").read_text()


def test_no_data_is_opened_for_a_proof_that_reads_none(
    text: Text, keep: Callable[..., RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Personal runs have no test data, and imported ones name a stand-in for their training's."""
    from test_export_pipeline import made

    from diptych.finetune.export import pipe

    monkeypatch.setattr(pipe, "prove", lambda *given: {"batch": given[-1]})
    run, task = made(text, "data.test=null", "data.train=/nowhere")
    proof = ship(unread(keep(run, task, text)), "diffusers", tmp_path / "out")
    assert proof == {"batch": None}
    assert (tmp_path / "out" / "unet" / "config.json").exists()


def test_an_unknown_target_names_the_near_one(found: Finished, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown 'diptich'\. Did you mean 'diptych'\?"):
        ship(found, "diptich", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_vqa_head_answers_nothing(
    small: Callable[..., Run], text: Text, keep: Callable[..., RunDir], tmp_path: Path, colors: str
) -> None:
    run = small(f"data.train={colors}", f"data.test={colors}", "data.text=question")
    opened = finished(keep(run, run.task(text), text))
    folder.write(tmp_path / "out", run, opened.task, text, {})
    with pytest.raises(ExportError, match="was not fine-tuned for questions"):
        load(tmp_path / "out").answer([picture("red")], [QUESTION])
    with pytest.raises(RunError, match="has no vqa head"):
        predictions(opened, next(opened.batches(limit=2, rows=2)))


def test_a_blind_model_is_scored_on_data_without_what_it_does_not_see(
    small: Callable[..., Run], text: Text, keep: Callable[..., RunDir], tmp_path: Path
) -> None:
    shard = [(key, {"json": members["json"]}) for key, members in map(sample, range(6))]
    storage.write(f"{tmp_path}/00000.tar", tar(shard))
    index.build([f"{tmp_path}/00000.tar"])
    settings = ["objectives=[{kind: vqa, answers: [red, blue]}]", "data.text=question"]
    settings += [f"data.test={tmp_path}", f"data.train={tmp_path}"]
    for streams, fine in (("text", True), ("both", False), ("image", False)):
        run = small(*settings, f"model.streams={streams}")
        opened = finished(keep(run, run.task(text), text))
        if fine:
            assert score(opened, control=False)["vqa.accuracy"] <= 4 / 6
        else:
            with pytest.raises(ShardError, match=r"00000\.tar: 000 has no image"):
                score(opened)
