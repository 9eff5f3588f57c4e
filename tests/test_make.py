import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from diptych.data import index, storage, tokens
from diptych.data.check import check
from diptych.data.index import entries
from diptych.data.make import Making, Texts, make
from diptych.data.pack import Sample, Shape, pack
from diptych.data.pictures import Fit
from diptych.data.verbs import app
from diptych.errors import DataError

Samples = Callable[..., list[Sample]]
DEEP = 700 if sys.version_info < (3, 12) else 1500
"""Lists in lists that JSON's parser still takes, and Python's own functions do not."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 pictures with captions, one that is none."""
    for number in range(40):
        folder = tmp_path / f"photos/{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 32), (number, 0, 0)).save(folder / f"{number:02d}.jpg")
        (folder / f"{number:02d}.txt").write_text(f"photo number {number}")
    (tmp_path / "photos/bad.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def run(*words: str | Path) -> tuple[int, Any]:
    done = CliRunner().invoke(app, ["pack", *map(str, words), "--json"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def keys(url: str) -> set[str]:
    manifest = index.open_manifest(url)
    return {entry.record.key for shard in manifest.shards for entry in entries(manifest, shard)}


def test_a_folder_becomes_a_checked_dataset_in_a_bucket(photos: Path, bucket: str) -> None:
    out = f"{bucket}/made"
    code, told = run(photos, out, "--per-shard", "16", "--longest", "16")
    part = told["parts"]["all"]
    assert code == 0
    assert (part["inputs"], part["samples"], part["shards"]) == (41, 40, 3)
    assert part["skipped"] == {"not a JPEG, PNG or WebP": 1}
    assert part["url"] == out
    manifest = index.open_manifest(out)
    found = check(manifest)
    assert (found.good, found.reasons, found.replaced) == (40, {}, 0)
    sizes = {(e.width, e.height) for shard in manifest.shards for e in entries(manifest, shard)}
    assert sizes == {(16, 8)}
    assert json.loads(storage.read(f"{out}/skipped.jsonl"))["input"] == "bad.jpg"
    assert tokens.load(f"{out}/tokenizer.json", 8).encode(["photo number 7"])[1].sum() == 5
    assert run(photos, out, "--per-shard", "16", "--longest", "16")[1]["parts"]["all"]["kept"] == 3
    with pytest.raises(DataError, match="was packed with longest = 16, not 32"):
        run(photos, out, "--per-shard", "16", "--longest", "32")


def test_a_split_is_by_key_and_stays(photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    told = run(photos, first, "--validation", "0.25")[1]["parts"]
    train, validation = keys(f"{first}/train"), keys(f"{first}/validation")
    assert not train & validation
    assert len(train | validation) == 40
    assert 3 <= len(validation) <= 18
    assert sum(part["skipped"].get("not a JPEG, PNG or WebP", 0) for part in told.values()) == 1
    Image.new("RGB", (9, 9)).save(photos / "0/000.jpg")
    run(photos, second, "--validation", "0.25")
    assert train <= keys(f"{second}/train")
    assert validation <= keys(f"{second}/validation")
    assert storage.exists(f"{first}/tokenizer.json")


def test_a_dataset_does_not_depend_on_interruptions(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Making(shape=Shape(samples=10, skips=0.1))
    learned: list[list[str]] = []

    def learn(texts: list[str], size: int) -> str:
        learned.append(texts)
        return "{}"

    monkeypatch.setattr(tokens, "learn", learn)  # the library's own order of ties is not fixed
    whole = make(str(photos), str(tmp_path / "whole"), how)
    count = 0

    def told(inputs: int) -> None:
        nonlocal count
        count += inputs
        if count == 27:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(str(photos), str(tmp_path / "out"), how, told=told)
    made = make(str(photos), str(tmp_path / "out"), how)
    assert made.packed[""].kept == 2
    assert learned[0] == learned[1] != []
    assert made.manifests[""].digest == whole.manifests[""].digest
    for name in ("00000.tar", "00003.tar", "skipped.jsonl"):
        assert storage.read(f"{tmp_path}/out/{name}") == storage.read(f"{tmp_path}/whole/{name}")


def test_no_tokenizer_if_none_is_wanted(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", "--vocabulary", "0")
    assert not storage.exists(f"{tmp_path}/out/tokenizer.json")


def test_too_many_unreadable_pictures_are_an_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 41 inputs cannot be packed"):
        run(photos, tmp_path / "out", "--max-skipped", "0.01")


def test_a_table_is_packed_by_its_columns(photos: Path, tmp_path: Path) -> None:
    rows = ["wo,was,id", *(f"photos/{n % 3}/{n:02d}.jpg,text {n},id-{n}" for n in range(9))]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    columns = ("--image", "wo", "--caption", "was", "--key", "id")
    run(tmp_path / "table.csv", out, *columns, "--shard-mb", "0.0205")
    assert keys(str(out)) == {f"id-{n}" for n in range(9)}


def test_what_is_shown_to_people(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.md").touch()
    done = CliRunner().invoke(app, ["pack", str(photos), str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "40 samples in 1 shards" in done.stdout
    assert "1 skipped: not a JPEG, PNG or WebP" in done.stdout
    assert "ignored: {'.md': 1}" in done.stdout


def test_easy_vqa_is_packed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: Sequence[Sample] = [(f"{n:06d}", {"txt": b"a circle"}) for n in range(9)]
    monkeypatch.setattr("diptych.data.easyvqa.samples", lambda split: list(few))
    made = make("easy-vqa", str(tmp_path), Making(split="test", fit=Fit(longest=9)))
    assert made.manifests[""].samples == 9
    assert keys(str(tmp_path)) == {key for key, _ in few}


def test_the_chosen_texts_do_not_depend_on_the_order(samples: Samples, tmp_path: Path) -> None:
    found = samples(60)
    chosen = Texts(most=10)
    for key, members in found:
        chosen.add(key, members)
    again = Texts(most=10)
    for key, members in found[40:][::-1]:
        again.add(key, members)
    for url in pack(found[:40], str(tmp_path), per_shard=20):
        again.read(url)
    assert chosen.some == again.some
    assert len(chosen.some) == 30, "caption, question and answer of ten samples"


def test_a_record_too_deep_to_be_written_is_skipped(photos: Path, tmp_path: Path) -> None:
    deep = b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}"
    (photos / "0/00.json").write_bytes(deep)
    _, told = run(photos, tmp_path / "out", "--vocabulary", "0")
    assert told["parts"]["all"]["samples"] == 39
    assert told["parts"]["all"]["skipped"] == {"cannot be read": 1, "not a JPEG, PNG or WebP": 1}
