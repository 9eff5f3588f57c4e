"""`caption`, `retrieve` and `search` with runs that learned eight pictures by heart."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.data import index, storage
from diptych.data.batch import Batch, joined
from diptych.data.index import Manifest
from diptych.data.loader import once
from diptych.data.pack import Sample, tar
from diptych.data.tokens import Text
from diptych.errors import DataError, RunError
from diptych.finetune import gallery
from diptych.finetune.retrieve import score_retrieval
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

TWO = "model={kind: two_stream, width: 32, heads: 2, image_size: 16, tokens: 12, text_depth: 1, "
TWO += "visual_depth: 1, cross_depth: 1, shared: 16, visual: {kind: patches, patch: 4}}"


def picture(number: int) -> bytes:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def sample(number: int, twin: int = 0) -> Sample:
    line = f"a picture with number {number}" + twin * " is it yes"
    record = json.dumps({"captions": [line, "<b>number</b>"]}).encode()
    members = {"png": picture(number), "txt": line.encode(), "json": record}
    return f"{number:03d}-{twin}", members


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight pictures in two shards."""
    folder = tmp_path_factory.mktemp("eight")
    for shard in range(2):
        rows = [sample(number) for number in range(4 * shard, 4 * shard + 4)]
        storage.write(str(folder / f"{shard}.tar"), tar(rows))
    return index.build([str(folder / f"{shard}.tar") for shard in range(2)])


Learned = Callable[..., RunDir]


@pytest.fixture(scope="module")
def learned(
    small: Callable[..., Run], keep: Callable[..., RunDir], text: Text, eight: Manifest
) -> Learned:
    """`learned("name", steps, settings...)`: the folder of a run that learned the eight."""

    def make(name: str, steps: int, *settings: str) -> RunDir:
        torch.manual_seed(0)
        run = small(f"name={name}", f"data.test={eight.url}", *settings)
        (batch,) = once(eight, text, run.rows)
        task = run.task(text)
        optimiser = torch.optim.AdamW(task.parameters(), 5e-3, weight_decay=0)
        for _ in range(steps):
            optimiser.zero_grad()
            task(batch).total.backward()
            optimiser.step()
        return keep(run, task, text)

    return make


@pytest.fixture(scope="module")
def writer(learned: Learned) -> Iterator[RunDir]:
    yield learned("writer", 80, "objectives=[{kind: prefix}]", "model.width=32")


@pytest.fixture(scope="module")
def finder(learned: Learned) -> Iterator[RunDir]:
    objectives = "objectives=[{kind: itm, negatives: 0.001}, {kind: contrastive}]"
    yield learned("finder", 40, objectives, TWO)


def told(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.stdout


def test_captions_of_a_test_set(writer: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    found = json.loads(told("caption", writer.url, "--json", "--out", str(out)))
    assert found["pictures"] == 8
    assert found["bleu_4"] == pytest.approx(1)
    assert found["cider_d"] == pytest.approx(10)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[5]["image"] == "1.tar/005-0"
    assert lines[5]["text"] == lines[5]["references"][0] == "a picture with number 5"
    few = json.loads(told("caption", writer.url, "--json", "--limit", "3", "--how", "greedy"))
    assert few["pictures"] == 3
    assert few["bleu_1"] == pytest.approx(1)
    short = json.loads(told("caption", writer.url, "--json", "--length-penalty=-100"))
    assert short["bleu_1"] < 0.5


def test_captions_of_files(writer: RunDir, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in (6, 2)]
    for path, number in zip(paths, (6, 2), strict=True):
        storage.write(path, picture(number))
    flags = [word for path in paths for word in ("--image", path)]
    found = json.loads(told("caption", writer.url, *flags, "--json"))
    assert [row["text"] for row in found] == [f"a picture with number {n}" for n in (6, 2)]
    assert "6.png: a picture with number 6" in told("caption", writer.url, *flags)
    storage.write(paths[0], b"no picture")
    refused = CliRunner().invoke(app, ["caption", writer.url, *flags])
    assert isinstance(refused.exception, DataError)
    assert "6.png is no picture" in str(refused.exception)


def test_a_picture_with_two_texts_is_one_picture(
    writer: RunDir, finder: RunDir, tmp_path: Path
) -> None:
    rows = [sample(number, twin) for number in range(8) for twin in (0, 1)]
    storage.write(str(tmp_path / "twins.tar"), tar(rows))
    twins = index.build([str(tmp_path / "twins.tar")])
    assert len(set(gallery.pictures(twins).values())) == 8
    found = json.loads(told("caption", writer.url, "--data", twins.url, "--json"))
    assert found["pictures"] == 8
    assert found["bleu_4"] == pytest.approx(1)
    by_field = gallery.references(twins, "captions")
    assert [len(texts) for texts in by_field.values()] == [4] * 8
    with pytest.raises(DataError, match="--references"):
        gallery.references(twins, "title")
    for flags in ([], ["--rerank", "3"], ["--every-pair"]):
        ranks = json.loads(told("retrieve", finder.url, "--data", twins.url, "--json", *flags))
        assert (ranks["pictures"], ranks["texts"]) == (8, 16)
        assert ranks["image_to_text.median_rank"] >= 1
    words = ["retrieve", finder.url, "--data", twins.url, "--json", "--references"]
    for flags in ([], ["--rerank", "3"], ["--every-pair"]):
        ranks = json.loads(told(*words, "captions", *flags))
        assert (ranks["pictures"], ranks["texts"]) == (8, 24), "one is of both samples of a picture"
    assert json.loads(told(*words, "txt", "--limit", "6"))["texts"] == 6


def test_ranks(finder: RunDir) -> None:
    found = json.loads(told("retrieve", finder.url, "--json"))
    assert found["image_to_text.r1"] == found["text_to_image.r1"] == 1
    assert found["text_to_image.median_rank"] == 1


def test_a_picture_is_found_once_however_often_it_is_there(
    small: Callable[..., Run], text: Text, rows: Callable[..., Batch]
) -> None:
    """Four rows of one wrong picture take one rank from a text, not four."""
    task = small("objectives=[{kind: itm}, {kind: contrastive}]", TWO).task(text)
    two = rows(2)
    test = two.pick(torch.tensor([0, 0, 0, 0, 1]))
    found = score_retrieval(task, test, torch.tensor([0, 0, 0, 0, 1]))
    assert found["text_to_image.r5"] == 1
    assert found["text_to_image.median_rank"] in (1, 1.5, 2)
    assert joined([two, two]).keys == two.keys * 2
    with pytest.raises(DataError, match="No sample is left"):
        joined([])


def test_search_by_text_and_by_picture(finder: RunDir, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["search", finder.url, "--top", "3", "--out", str(page), "--json"]
    found = json.loads(told(*words, "--query", "a picture with number 3"))
    assert found["page"] == str(page)
    assert found["hits"][0]["name"] == "0.tar/003-0"
    assert [hit["score"] for hit in found["hits"]] == sorted(
        (hit["score"] for hit in found["hits"]), reverse=True
    )
    html = page.read_text()
    assert html.count('src="data:image/webp;base64,') == 3
    assert "http" not in html
    storage.write(str(tmp_path / "q.png"), picture(6))
    by_picture = json.loads(told(*words, "--image", str(tmp_path / "q.png")))
    assert by_picture["hits"][0]["text"] == "a picture with number 6"
    assert page.read_text().count('src="data:image/webp;base64,') == 4
    same = json.loads(told(*words, "--image", str(tmp_path / "q.png"), "--finds", "image"))
    assert same["hits"][0]["name"] == "1.tar/006-0"
    assert same["hits"][0]["score"] == pytest.approx(1, abs=1e-4)


def test_a_page_escapes_what_it_shows(finder: RunDir, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told("search", finder.url, "--query", "<script>alert(1)</script>", "--out", str(page))
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["search"], "--query TEXT or --image FILE"),
        (["search", "--query", "a", "--image", "b"], "--query TEXT or --image FILE"),
        (["caption", "--image", "a", "--data", "b"], "--image and --data"),
        (["retrieve", "--rerank", "3", "--every-pair"], "--rerank and --every-pair"),
        (["search", "--query", "a"], "embeds neither alone"),
        (["retrieve"], "embeds neither alone"),
        (["retrieve", "--every-pair"], "judges no pairs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be(writer: RunDir, words: list[str], part: str) -> None:
    done = CliRunner().invoke(app, [words[0], writer.url, *words[1:]])
    assert part in str(done.exception)


def test_a_run_without_words_for_pictures(finder: RunDir) -> None:
    done = CliRunner().invoke(app, ["caption", finder.url])
    assert isinstance(done.exception, RunError)
    assert "kind: prefix" in str(done.exception)
