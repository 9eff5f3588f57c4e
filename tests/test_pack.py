import io
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from diptych.data import easyvqa, pack, storage
from diptych.data.easyvqa import Question
from diptych.errors import DataError


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def packed(folder: Path) -> list[tuple[str | None, dict[str, object] | None]]:
    """(text, record) of each picture of a folder."""
    found = [members for _, members in pack.folder(folder)]
    return [
        (
            members["txt"].decode() if "txt" in members else None,
            json.loads(members["json"]) if "json" in members else None,
        )
        for members in found
    ]


def test_captions_lie_beside_the_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "b.png", "a.JPG", "sub/c.webp")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf a gr\xc3\xbcn one \n")
    (tmp_path / "sub/c.txt").write_text("c")
    (tmp_path / "notes.md").touch()
    assert packed(tmp_path) == [("a grün one", None), (None, None), ("c", None)]
    keys, extensions = zip(*((key, list(m)) for key, m in pack.folder(tmp_path)), strict=True)
    assert keys == ("000000000", "000000001", "000000002")
    assert extensions == (["jpg", "txt"], ["png"], ["webp", "txt"])


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_captions_and_records_come_from_metadata(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "a.png", "sub/b.png", "c.png")
    (tmp_path / "c.txt").write_text("from the file")
    rows = [
        {"file_name": "sub/b.png", "caption": "two, \u2028 or three", "text": "", "size": "4"},
        {"file_name": "a.png", "caption": "kept", "text": "one", "size": "5"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if name.endswith("csv"):
        cells = [[json.dumps(v, ensure_ascii=False) for v in row.values()] for row in rows]
        lines = [",".join(rows[0]), *map(",".join, cells)]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b"\n")
    assert packed(tmp_path) == [
        ("one", {"caption": "kept", "size": "5"}),
        ("from the file", None),
        (None, {"caption": "two, \u2028 or three", "size": "4"}),
    ]


def test_a_caption_column_is_the_text(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,words\n")
    assert packed(tmp_path) == [("words", None)]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("metadata.jsonl", b'{"file_name": "b.png"}', r"names 'b\.png', which is not there"),
        ("metadata.jsonl", b'{"text": "x"}', "needs a `file_name` in every row"),
        ("metadata.jsonl", b"[1]", "needs a `file_name`"),
        ("metadata.jsonl", b"{", "needs a `file_name`"),
        ("metadata.jsonl", b"\xff", r"metadata\.jsonl is not UTF-8"),
        ("metadata.csv", b"name,text\na.png,x\n", "needs a `file_name`"),
        ("metadata.csv", b'file_name,text\na.png,"' + b"x" * 200_000, "field larger"),
        ("a.txt", b"\xff", r"a\.txt is not UTF-8"),
    ],
)
def test_what_a_folder_gets_wrong_is_named(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        list(pack.folder(tmp_path))


def test_a_folder_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        list(pack.folder(tmp_path / "nowhere"))


SAMPLES = [(f"{n:03d}", {"txt": str(n).encode(), "json": b"{}"}) for n in range(7)]


def test_shards_are_whole_and_webdataset_reads_them(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    out = str(tmp_path / "out")
    urls = pack.pack(iter(SAMPLES), out, per_shard=3, done=lambda *each: told.append(each))
    assert urls == [f"file://{out}/{n:05d}.tar" for n in range(3)]
    assert told == list(zip(urls, (3, 3, 1), strict=True))
    opened = [{"url": url, "stream": io.BytesIO(storage.read(url))} for url in urls]
    found = [
        (row["__key__"], {"txt": row["txt"], "json": row["json"]})
        for row in group_by_keys(tar_file_expander(opened))
    ]
    assert found == SAMPLES


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    urls = [pack.pack(SAMPLES, str(tmp_path / name), per_shard=7)[0] for name in "ab"]
    assert storage.read(urls[0]) == storage.read(urls[1]) == pack.tar(SAMPLES)
    assert pack.scattered(SAMPLES, 1) == pack.scattered(SAMPLES, 1)
    assert sorted(pack.scattered(SAMPLES, 1)) == SAMPLES != pack.scattered(SAMPLES, 1)


def test_tars_are_never_overwritten(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    before = storage.read(pack.pack(SAMPLES[:2], out)[0])
    with pytest.raises(DataError, match="holds tars already"):
        pack.pack(SAMPLES, out)
    assert storage.children(out) == ["00000.tar"]
    assert storage.read(f"{out}/00000.tar") == before


def test_nothing_to_pack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples were found"):
        pack.pack([], str(tmp_path))


# What an image of easy-VQA shows follows from its what-questions alone; a statement made of any
# question, in any wording, must agree with it.

COLORS = "black blue brown gray green red teal yellow"
SHAPES = "circle rectangle triangle"


def shown(rows: list[Question]) -> dict[int, set[str]]:
    """The color and the shape of each image."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for row in rows:
        if row.text.startswith("what"):
            found[row.image] |= {row.answer, *re.findall(COLORS.replace(" ", "|"), row.text)}
            found[row.image] |= set(re.findall(SHAPES.replace(" ", "|"), row.text))
    return found


def is_true(statement: str, facts: set[str]) -> bool:
    named = set(statement.split()) & {*COLORS.split(), *SHAPES.split()}
    assert named, f"{statement!r} says nothing"
    denies = bool(re.search(r"\b(no|not)\b", statement))
    return denies != (named <= facts)


@pytest.fixture(scope="module")
def rows() -> list[Question]:
    found = [json.loads(members["json"]) for _, members in easyvqa.samples("test")]
    return [Question(row["question"], row["answer"], row["image"]) for row in found]


def test_every_statement_of_easy_vqa_is_true(rows: list[Question]) -> None:
    facts = shown(rows)
    sure = [row for row in rows if len(facts[row.image]) == 2]
    forms = {re.sub("|".join([*COLORS.split(), *SHAPES.split()]), "_", row.text) for row in sure}
    assert len(forms) == 24
    for row in sure:
        for style in range(3):
            assert is_true(easyvqa.statement(row, style=style), facts[row.image]), row


def test_every_caption_of_easy_vqa_is_true(rows: list[Question]) -> None:
    facts = shown(rows)
    for (_, members), row in zip(easyvqa.samples("test")[:2000], rows, strict=False):
        for part in members["txt"].decode().split(" and "):
            assert len(facts[row.image]) < 2 or is_true(part, facts[row.image]), row


def test_the_answers_are_the_thirteen(rows: list[Question]) -> None:
    assert {row.answer for row in rows} == set(easyvqa.answers())
    assert len(easyvqa.answers()) == 13


def test_an_unknown_question_is_an_error() -> None:
    for text, answer in (("who?", "yes"), ("is there a circle?", "maybe")):
        with pytest.raises(DataError, match="no statement can be made"):
            easyvqa.statement(Question(text, answer, 0))
