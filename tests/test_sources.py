import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from diptych.data.items import Item, Source, Unreadable, reads_back
from diptych.data.sources import open_source
from diptych.data.sources.arrow import ArrowFiles
from diptych.data.sources.files import Folder
from diptych.data.sources.tables import Columns
from diptych.errors import DataError

DEEP = 700 if sys.version_info < (3, 12) else 1500
"""Lists in lists that JSON's parser still takes, and Python's own functions do not."""


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    return folder


def told(item: Item) -> tuple[str | None, Any] | str:
    """(caption, record) of an input, or why there is none."""
    try:
        members = item.load()
    except Unreadable as err:
        return err.reason
    text, record = members.get("txt"), members.get("json")
    return text.decode() if text is not None else None, json.loads(record) if record else None


def all_told(source: Source) -> list[tuple[str, Any]]:
    items = list(source)
    assert all(reads_back(item.key, "jpg") for item in items)
    assert len({item.key for item in items}) == len(items)
    assert [item.key for item in items] == [item.key for item in source]
    return [(item.name, told(item)) for item in items]


# A folder of files.


def test_captions_and_records_lie_beside_the_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "b.png", "a.JPG", "sub/c.webp", "d.jpeg", "e.jpg")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf a gr\xc3\xbcn one \n")
    (tmp_path / "sub/c.txt").write_text("c")
    (tmp_path / "sub/c.json").write_text('{"caption": "not this", "size": 3}')
    (tmp_path / "d.json").write_text('{"caption": "from the record", "x": NaN}')
    source = open_source(str(tmp_path))
    assert all_told(source) == [
        ("a.JPG", ("a grün one", None)),
        ("b.png", (None, None)),
        ("d.jpeg", ("from the record", {"caption": "from the record", "x": None})),
        ("e.jpg", (None, None)),
        ("sub/c.webp", ("c", {"caption": "not this", "size": 3})),
    ]
    assert [item.key for item in source] == ["a", "b", "d", "e", "sub/c"]


def test_keys_of_files_do_not_depend_on_other_files(tmp_path: Path) -> None:
    pictures(tmp_path, "b.png", "v1.2.png", "a b.jpg")
    before = {item.name: (item.key, item.group) for item in open_source(str(tmp_path))}
    pictures(tmp_path, "a.png", "0/b.png", "v1_2.png")
    after = {item.name: (item.key, item.group) for item in open_source(str(tmp_path))}
    assert before.items() < after.items()
    assert len(set(after.values())) == 6


def test_pictures_of_one_name_have_keys_of_their_own_and_stay_together(tmp_path: Path) -> None:
    pictures(tmp_path, "a.JPG", "a.png", "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("both")
    items = list(open_source(str(tmp_path)))
    assert len({item.key for item in items}) == 4
    assert [item.group for item in items] == ["a", "a", "a", "b"]
    assert [told(item) for item in items] == [*[("both", None)] * 3, (None, None)]


def test_what_a_folder_holds_besides_is_told(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", ".hidden/x.png", "sub/b.png")
    for name in ("notes.md", "orphan.txt", "x.gif", "y.HEIC", ".DS_Store", "sub/z.tiff", "LICENSE"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    source = open_source(str(tmp_path))
    assert all_told(source) == [
        ("a.png", (None, None)),
        ("c.png", (None, None)),
        ("x.gif", (None, None)),
        ("y.HEIC", "not a JPEG, PNG or WebP"),
        ("link", "link to a folder"),
        ("sub/b.png", (None, None)),
        ("sub/z.tiff", (None, None)),
    ]
    assert source.notes.ignored == {"hidden folder": 1, ".md": 1, ".txt": 1, "no suffix": 2}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\xff", "caption is not UTF-8"),
        ("a.json", b"{", "record is not JSON"),
        ("a.json", b"[1]", "record is not JSON"),
        ("a.json", b"[" * 100_000, "record is not JSON"),
    ],
)
def test_an_unreadable_sidecar_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / name).write_bytes(content)
    assert all_told(open_source(str(tmp_path))) == [("a.png", reason), ("b.png", (None, None))]


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    for name in ("loop", "loop.png"):
        (tmp_path / name).symlink_to(tmp_path / name)
    assert all_told(open_source(str(tmp_path))) == [
        ("loop", "link to itself"),
        ("loop.png", "link to itself"),
        ("a.png", (None, None)),
    ]


def test_a_pipe_and_a_device_are_no_pictures_and_no_captions(tmp_path: Path) -> None:
    pictures(tmp_path, "c.png")
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "c.txt")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    found = all_told(open_source(str(tmp_path)))
    assert found == [
        ("a.png", "missing picture"),
        ("b.png", "missing picture"),
        ("c.png", (None, None)),
    ]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png())
    ((name, found),) = all_told(open_source(str(tmp_path)))
    assert (name, found) == ("caf\\udce9.png", (None, None))


def test_stamps_change_with_the_picture_and_what_lies_beside_it(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")

    def stamps() -> list[str]:
        return [item.stamp for item in open_source(str(tmp_path))]

    first = stamps()
    assert first == stamps()
    (tmp_path / "a.txt").write_text("new")
    second = stamps()
    assert second[0] != first[0] and second[1] == first[1]
    (tmp_path / "b.png").write_bytes(png() + b"x")
    assert stamps()[1] != first[1]


# Metadata tables beside pictures.


@pytest.mark.parametrize(
    "name", [f"metadata.{kind}" for kind in ("jsonl", "csv", "tsv", "parquet")]
)
def test_captions_and_records_come_from_metadata(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "a.png", "sub/b.png", "c.png", "sub/d.png")
    (tmp_path / "c.txt").write_text("from the file")
    rows = [
        {"file_name": "sub/b.png", "caption": "two, \u2028 or three", "text": "", "size": "4"},
        {"file_name": "a.png", "caption": "kept", "text": "one", "size": "5"},
        {"file_name": "a.png", "caption": "again", "text": "other", "size": "6"},
        {"file_name": "gone.png", "caption": "", "text": "", "size": "7"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if not name.endswith("jsonl"):
        comma = "\t" if name.endswith("tsv") else ","
        cells = [[json.dumps(v, ensure_ascii=False) for v in row.values()] for row in rows]
        lines = [comma.join(rows[0]), *map(comma.join, cells)]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b"\n")
    if name.endswith("parquet"):
        columns = pyarrow.table({column: [row[column] for row in rows] for column in rows[0]})
        parquet.write_table(columns, tmp_path / name)
    first = {"jsonl": 1, "parquet": 0}.get(name.removeprefix("metadata."), 2)
    source = open_source(str(tmp_path))
    assert all_told(source) == [
        (f"{name}:{first}", (None, {"caption": "two, \u2028 or three", "size": "4"})),
        (f"{name}:{first + 1}", ("one", {"caption": "kept", "size": "5"})),
        (f"{name}:{first + 2}", ("other", {"caption": "again", "size": "6"})),
        (f"{name}:{first + 3}", "missing picture"),
        ("c.png", ("from the file", None)),
        ("sub/d.png", (None, None)),
    ]
    items = list(source)
    assert items[1].group == items[2].group == "a", "rows of one picture are split together"


def test_metadata_may_lie_in_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "train/a.png", "test/a.png")
    (tmp_path / "train/metadata.csv").write_text("file_name,caption\na.png,words\n")
    assert all_told(open_source(str(tmp_path))) == [
        ("test/a.png", (None, None)),
        ("train/metadata.csv:2", ("words", None)),
    ]


# Tables.


def table(tmp_path: Path, name: str, text: str | bytes) -> str:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return str(tmp_path / name)


def test_a_table_with_columns_of_any_name(tmp_path: Path) -> None:
    pictures(tmp_path, "in/x.png", "in/y.png")
    place = table(tmp_path, "t.csv", "wo,was,id,n\nin/x.png,ein Bild,7,1\nin/y.png,,8.5,2\n")
    with pytest.raises(DataError, match=r"none of the columns wo, was, id, n .*--image"):
        list(open_source(place))
    columns = Columns(image="wo", caption="was", key="id")
    assert all_told(open_source(place, columns)) == [
        ("t.csv:2", ("ein Bild", {"id": "7", "n": "1"})),
        ("t.csv:3", (None, {"id": "8.5", "n": "2"})),
    ]
    assert [item.key[:3] for item in open_source(place, columns)] == ["7", "8_5"]
    for wrong in (Columns(image="x"), Columns(image="wo", key="k")):
        with pytest.raises(DataError, match="has no column"):
            list(open_source(place, wrong))


def test_a_column_without_a_name_is_no_caption_and_no_key(tmp_path: Path) -> None:
    """pandas writes its row numbers so."""
    pictures(tmp_path, "one/a.png", "two/a.png")
    for name in ("one", "two"):
        table(tmp_path / name, "metadata.csv", ",file_name,label\n0,a.png,cat\n")
    assert [what for _, what in all_told(open_source(str(tmp_path)))] == [
        (None, {"": "0", "label": "cat"}),
        (None, {"": "0", "label": "cat"}),
    ]
    place = table(tmp_path / "one", "t.csv", ",image,text\n0,a.png,cat\n")
    source = open_source(place, Columns(caption="", key=""))
    assert all_told(source) == [("t.csv:2", ("cat", {"": "0"}))]
    assert [item.key[:2] for item in source] == ["a-"]


def test_the_key_may_be_the_column_of_the_picture_or_the_caption(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    place = table(tmp_path, "t.csv", "file_name,text\na.png,one\nb.png,two\n")
    for key, keys in (("file_name", ["a_png", "b_png"]), ("text", ["one", "two"])):
        found = [item.key for item in open_source(place, Columns(key=key))]
        assert [one.partition("-")[0] for one in found] == keys


def test_keys_of_rows_depend_on_the_row_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "x.png", "y.png")
    rows = ["x.png,one", "y.png,two", "x.png,three"]
    keys: list[dict[str, str]] = []
    for order in (rows, rows[::-1], [*rows, "z.png,four"]):
        place = table(tmp_path, "t.csv", "\n".join(["image,text", *order]))
        keys.append({str(told(item)): item.key for item in open_source(place)})
    assert keys[0] == keys[1] and keys[0].items() < keys[2].items()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "/"}', "outside the folder"),
        (b'{"image": "a.png", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}", "unreadable row"),
        (b'{"image": ""}', "no picture"),
        (b'{"image": null}', "no picture"),
        (b'{"text": "x"}', "no picture"),
        (b'{"image": 7}', "no picture"),
        (b'{"image": "gone.png"}', "missing picture"),
        (b'{"image": "sub"}', "missing picture"),
        (b'{"image": "a\\u0000.png"}', "cannot be read"),
        (b'{"image": "https://example.org/a.png"}', "a URL"),
        (b'{"image": "s3://bucket/a.png"}', "a URL"),
        (b'{"image": "../secret.png"}', "outside the folder"),
        (b'{"image": "sub/../../secret.png"}', "outside the folder"),
        (b'{"image": "/etc/passwd"}', "outside the folder"),
        (b'{"image": "file:///etc/passwd"}', "outside the folder"),
        (b"{", "unreadable row"),
        (b"[1]", "unreadable row"),
        (b"\xff", "unreadable row"),
        (b"[" * 100_000, "unreadable row"),
    ],
)
def test_a_bad_row_is_named_and_the_others_go_on(tmp_path: Path, line: bytes, reason: str) -> None:
    pictures(tmp_path, "set/a.png", "set/sub/b.png", "secret.png")
    place = table(tmp_path / "set", "t.jsonl", b'{"image": "a.png"}\n\n' + line + b"\n")
    found = list(open_source(place))
    assert [item.name for item in found] == ["t.jsonl:1", "t.jsonl:3"]
    try:
        assert told(found[1]) == reason
    except ValueError:  # a zero byte in a path, which `pack` lists as such
        assert reason == "cannot be read"


def test_rows_of_json_may_leave_out_columns(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "c.png")
    rows: list[dict[str, Any]] = [
        {"n": 1},
        {"image": "a.png"},
        {"image": "b.png", "file_name": "z.png", "caption": "dog"},
        {"image": "c.png", "text": "kept", "caption": "cat", "id": "seven"},
    ]
    found = [
        "no picture",
        (None, None),
        ("dog", {"file_name": "z.png"}),
        ("cat", {"text": "kept", "id": "seven"}),
    ]
    lines = table(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)))
    whole = table(tmp_path, "t.json", json.dumps(rows))
    for place in (lines, whole):
        for columns in (Columns(), Columns(caption="caption", key="id")):
            source = open_source(place, columns)
            assert [what for _, what in all_told(source)] == found
            assert list(source)[-1].key.startswith("seven") == bool(columns.key)
        with pytest.raises(DataError, match=r"no column 'words', only n, image, file_name"):
            list(open_source(place, Columns(caption="words")))
    table(tmp_path, "metadata.jsonl", "\n".join(map(json.dumps, rows[1:])))
    assert [what for _, what in all_told(open_source(str(tmp_path)))] == found[1:]


def test_captions_of_coco_may_begin_later(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    said = [{"id": 5, "image_id": 2, "caption": "a dog"}]
    place = table(tmp_path, "t.json", json.dumps({"images": images, "annotations": said}))
    found = [what for _, what in all_told(open_source(place))]
    assert found == [(None, {"id": 1}), ("a dog", {"id": 2, "captions": ["a dog"]})]


def test_rows_of_a_wrong_length_or_encoding_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    text = b"image,text\na.png,x\na.png\na.png,x,y\na.png,\xff\na.png,last\n"
    found = [what for _, what in all_told(open_source(table(tmp_path, "t.csv", text)))]
    assert found == [("x", None), *["unreadable row"] * 3, ("last", None)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('image,text\na.png,"' + "x" * 200_000, "unexpected end of data"),
        ("image,image\na,b\n", "comes twice"),
        ('image,text\na.png,"x"y\n', "line 2"),
    ],
)
def test_a_table_that_is_none_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        list(open_source(table(tmp_path, "t.csv", text)))


def test_a_cell_of_any_length_that_a_text_may_have(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    found = all_told(open_source(table(tmp_path, "t.csv", f"image,text\na.png,{'x' * 200_000}\n")))
    assert found == [("t.csv:2", ("x" * 200_000, None))]
    with pytest.raises(DataError, match="field larger"):
        list(open_source(table(tmp_path, "t.csv", f'image,text\na.png,"{"x" * (17 << 20)}')))


def test_root_allows_paths_elsewhere(tmp_path: Path) -> None:
    pictures(tmp_path, "pictures/a.png")
    (tmp_path / "tables").mkdir()
    text = f"image\na.png\n{tmp_path}/pictures/a.png\n"
    place = table(tmp_path / "tables", "t.csv", text)
    found = [told(item) for item in open_source(place, root=str(tmp_path / "pictures"))]
    assert found == [(None, None), (None, None)]


def test_what_json_cannot_hold(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    place = table(tmp_path, "t.jsonl", '{"image": "a.png", "x": NaN, "y": [1, {"z": Infinity}]}')
    assert told(next(iter(open_source(place)))) == (None, {"x": None, "y": [1, {"z": None}]})


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    half, mended = '"hi \\ud83d"', "hi \ufffd"
    pictures(tmp_path, "set/a.png", "set/b.png", "c.png")
    (tmp_path / "set/a.json").write_text(f'{{"caption": {half}, {half}: [{half}]}}')
    assert all_told(open_source(str(tmp_path / "set"))) == [
        ("a.png", (mended, {"caption": mended, mended: [mended]})),
        ("b.png", (None, None)),
    ]
    rows = [f'{{"image": "c.png", "text": {said}, "note": {half}}}' for said in (half, f"[{half}]")]
    found = all_told(open_source(table(tmp_path, "t.jsonl", "\n".join(rows))))
    assert found == [
        ("t.jsonl:1", (mended, {"note": mended})),
        ("t.jsonl:2", (mended, {"text": [mended], "note": mended})),
    ]


# Parquet, Arrow, Hugging Face. The layouts below are those that datasets 5.2.0 writes
# (save_to_disk, to_parquet), checked against files that it had written.

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def hugging(rows: list[dict[str, Any]], **kinds: str) -> pyarrow.Table:
    """Rows as `datasets` stores them, with its features in the schema's metadata."""
    fields = [("image", IMAGE), ("text", pyarrow.string()), ("label", pyarrow.int64())]
    fields += [("caps", pyarrow.list_(pyarrow.string())), ("mask", IMAGE)]
    features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    features |= {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    features |= {"mask": {"_type": "Image"}}
    features |= {"caps": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}}
    info = json.dumps({"info": {"features": features}})
    schema = pyarrow.schema(fields, metadata={"huggingface": info})
    return pyarrow.Table.from_pylist(rows, schema)


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": png(n), "path": None},
            "text": f"t{n}",
            "label": n % 2,
            "caps": [f"c{n}", "x"],
            "mask": {"bytes": png(n), "path": None},
        }
        for n in range(first, first + count)
    ]


def save_to_disk(folder: Path, first: int, count: int) -> Path:
    folder.mkdir(parents=True)
    names = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
    for number, name in enumerate(names):
        part = hugging(rows(first + number * count // 2, count // 2))
        with pyarrow.ipc.new_stream(str(folder / name), part.schema) as writer:
            writer.write_table(part, max_chunksize=40)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def expected(first: int, count: int) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"t{n}", {"label": n % 2, "label_name": ("cat", "dog")[n % 2], "caps": [f"c{n}", "x"]})
        for n in range(first, first + count)
    ]


def test_a_saved_hugging_face_dataset(tmp_path: Path) -> None:
    source = open_source(str(save_to_disk(tmp_path / "one", 0, 100)))
    assert [what for _, what in all_told(source)] == expected(0, 100)
    assert source.notes.columns == {"mask"}
    assert next(iter(source)).load()["image"] == png(0)
    assert next(iter(source)).name == "data-00000-of-00002.arrow:0"


def test_a_saved_dataset_of_several_splits(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "train", 0, 20)
    save_to_disk(tmp_path / "test", 20, 10)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = open_source(str(tmp_path), split="test")
    assert [what for _, what in all_told(found)] == expected(20, 10)
    for split in (None, "dev"):
        with pytest.raises(DataError, match=r"has the splits train, test: .*--split"):
            open_source(str(tmp_path), split=split)


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "test, train"),
        ("train/0000.parquet", "test/0000.parquet", "test, train"),
        ("train.parquet", "test.parquet", "test, train"),
        ("train_0.parquet", "my test.parquet", "test, train"),
        ("beans-TRAIN.parquet", "beans.test2.PARQUET", "test, train"),
        ("a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet", "a/train, b/train"),
    ],
)
def test_a_repository_of_parquet_files(tmp_path: Path, train: str, test: str, names: str) -> None:
    for name, first in ((train, 0), (test, 50)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        parquet.write_table(hugging(rows(first, 50)), tmp_path / name)
    (tmp_path / "README.md").touch()
    pictures(tmp_path, "assets/teaser.png") if "-of-" in train else None
    with pytest.raises(DataError, match=f"has the splits {names}: choose one"):
        open_source(str(tmp_path))
    found = open_source(str(tmp_path), split=names.split(", ")["train" in names.split(", ")])
    assert isinstance(found, ArrowFiles)
    assert len(all_told(found)) == 50


def test_a_word_within_a_word_is_no_split(tmp_path: Path) -> None:
    for number, name in enumerate(("latest", "trains_0", "contest-1", "evaluated")):
        parquet.write_table(hugging(rows(number, 1)), tmp_path / f"{name}.parquet")
    assert len(list(open_source(str(tmp_path)))) == 4
    parquet.write_table(hugging(rows(9, 1)), tmp_path / "x-test.parquet")
    with pytest.raises(DataError, match="has the splits '', test: choose one"):
        open_source(str(tmp_path))
    assert len(list(open_source(str(tmp_path), split=""))) == 4


@pytest.mark.parametrize("name", ["X.PARQUET", "x.feather", "X.Arrow"])
def test_a_file_by_any_of_its_suffixes(tmp_path: Path, name: str) -> None:
    table = hugging(rows(0, 3))
    if name == "X.PARQUET":
        parquet.write_table(table, tmp_path / name)
    else:
        with pyarrow.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    for place in (tmp_path, tmp_path / name):
        assert [what for _, what in all_told(open_source(str(place)))] == expected(0, 3)


def test_the_same_rows_have_the_same_keys_in_every_file(tmp_path: Path) -> None:
    saved = open_source(str(save_to_disk(tmp_path / "one", 0, 20)))
    parquet.write_table(hugging(rows(0, 20)[::-1]), tmp_path / "x.parquet")
    again = open_source(str(tmp_path / "x.parquet"))
    assert {item.key: item.group for item in saved} == {item.key: item.group for item in again}


def test_bytes_of_one_path_are_told_apart(tmp_path: Path) -> None:
    found = [{"image": {"bytes": png(n), "path": "image.png"}, "text": "same"} for n in range(9)]
    parquet.write_table(hugging(found), tmp_path / "x.parquet")
    items = list(open_source(str(tmp_path / "x.parquet")))
    assert len({item.key for item in items}) == len({item.group for item in items}) == 9
    assert all(item.key.startswith("image-") for item in items)


def test_pictures_by_path_and_pictures_that_are_missing(tmp_path: Path) -> None:
    pictures(tmp_path, "in/a.png")
    cells = [{"path": "in/a.png"}, {"path": "/etc/passwd"}, None, {"bytes": b"", "path": None}]
    parquet.write_table(
        hugging([{"image": cell, "text": f"{n}"} for n, cell in enumerate(cells)]),
        tmp_path / "x.parquet",
    )
    found = [what for _, what in all_told(open_source(str(tmp_path / "x.parquet")))]
    record = {"label": None, "caps": None}
    assert found == [("0", record), "outside the folder", "no picture", "no picture"]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_plain_bytes_and_other_types(tmp_path: Path, kind: pyarrow.DataType) -> None:
    import datetime

    day = datetime.date(2026, 11, 23)
    plain = pyarrow.table(
        {
            "png": pyarrow.array([png(1), png(2)], kind),
            "caption": pyarrow.array(["one", None]).dictionary_encode(),
            "day": [day, day],
            "f": [float("nan"), 0.5],
            "raw": [b"\xff", b""],
        }
    )
    parquet.write_table(plain, tmp_path / "x.parquet")
    with pyarrow.ipc.new_file(str(tmp_path / "x.arrow"), plain.schema) as writer:
        writer.write_table(plain)
    for name in ("x.parquet", "x.arrow"):
        source = open_source(str(tmp_path / name))
        assert [what for _, what in all_told(source)] == [
            ("one", {"day": "2026-11-23", "f": None}),
            (None, {"day": "2026-11-23", "f": 0.5}),
        ]
        assert source.notes.columns == {"raw"}


def test_times_that_python_cannot_hold_are_texts(tmp_path: Path) -> None:
    times = {"ns": [1_234_567_891, 1_000_000_000], "us": [0, 10**18]}
    columns = {unit: pyarrow.array(each, pyarrow.timestamp(unit)) for unit, each in times.items()}
    columns["long"] = pyarrow.array(times["ns"], pyarrow.duration("ns"))
    columns["image"] = pyarrow.array([png(1), png(2)])
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    (_, first), (_, second) = all_told(open_source(str(tmp_path / "x.parquet")))
    assert first[1]["ns"] == "1970-01-01 00:00:01.234567891"
    assert first[1]["us"] == "1970-01-01 00:00:00" and second[1]["ns"] == "1970-01-01 00:00:01"
    assert "234567891" in first[1]["long"] and f"{10**18}" in second[1]["us"]
    columns["deep"] = pyarrow.StructArray.from_arrays([columns["us"]], names=["at"])
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: column 'deep' holds .* as text"):
        list(open_source(str(tmp_path / "x.parquet")))


def test_bytes_in_views_and_dictionaries_are_bytes(tmp_path: Path) -> None:
    seen = pyarrow.table(
        {
            "image": pyarrow.array([png(1)], pyarrow.binary_view()),
            "text": pyarrow.array(["one"], pyarrow.string_view()),
            "thumb": pyarrow.array([b"\xff"], pyarrow.binary_view()),
            "more": pyarrow.array([b"\xff"]).dictionary_encode(),
        }
    )
    with pyarrow.ipc.new_file(str(tmp_path / "x.arrow"), seen.schema) as writer:
        writer.write_table(seen)
    source = open_source(str(tmp_path / "x.arrow"))
    assert [what for _, what in all_told(source)] == [("one", None)]
    assert source.notes.columns == {"thumb", "more"}


def test_few_rows_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(*_: object, **__: object) -> None:
        pytest.fail("read whole")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read", whole)
    parquet.write_table(hugging(rows(0, 200)), tmp_path / "x.parquet", row_group_size=200)
    assert len(list(open_source(str(tmp_path / "x.parquet")))) == 200


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: b"", lambda data: b"PAR1"])
def test_a_damaged_parquet_file_is_an_error(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(hugging(rows(0, 9)), path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        list(open_source(str(path)))


def test_two_columns_of_one_name_in_parquet_are_an_error(tmp_path: Path) -> None:
    names = ["image", "caption", "caption"]
    table = pyarrow.table([pyarrow.array([text]) for text in ("a.png", "x", "y")], names=names)
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="comes twice"):
        list(open_source(str(tmp_path / "x.parquet")))


def test_an_arrow_file_cut_short_is_an_error(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "one", 0, 100)
    path = folder / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"00001-of-00002\.arrow is damaged"):
        list(open_source(str(folder)))


def test_a_selection_of_rows_is_refused(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "one", 0, 4)
    state = json.loads((folder / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="flatten_indices"):
        open_source(str(folder))


def test_what_is_no_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    (tmp_path / "empty").mkdir()
    for name, complaint in (
        ("nowhere", "is not a folder and not a table"),
        ("x.zip", r"\.zip is no table that pack reads"),
        ("empty", "holds no pictures and no .parquet"),
    ):
        with pytest.raises(DataError, match=complaint):
            open_source(str(tmp_path / name))


def test_a_split_of_what_has_none_is_an_error(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "saved", 0, 4)
    pictures(tmp_path, "folder/a.png")
    (tmp_path / "plain").mkdir()
    parquet.write_table(hugging(rows(0, 3)), tmp_path / "plain/x.parquet")
    for name in ("saved", "folder", "plain", "plain/x.parquet"):
        with pytest.raises(DataError, match=f"{name} has no splits.*Leave out --split"):
            open_source(str(tmp_path / name), split="train")


def test_img2dataset_as_files_is_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path, "00000/000000000.jpg")
    (tmp_path / "00000/000000000.txt").write_text("a caption")
    (tmp_path / "00000/000000000.json").write_text('{"caption": "a caption", "width": 4}')
    parquet.write_table(pyarrow.table({"url": ["x"]}), tmp_path / "00000.parquet")
    source = open_source(str(tmp_path))
    assert isinstance(source, Folder)
    assert [what for _, what in all_told(source)] == [
        ("a caption", {"caption": "a caption", "width": 4})
    ]
    assert source.notes.ignored == {".parquet": 1}


@pytest.mark.parametrize("comma", [",", ";", "\t", "|"])
def test_a_csv_may_be_separated_otherwise(comma: str, tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    lines = [["file_name", "text", "by"], ["a.png", "one", "me"], ["b.png", '"t, w; o"', "you"]]
    (tmp_path / "t.csv").write_text("".join(f"{comma.join(cells)}\r\n" for cells in lines))
    assert all_told(open_source(str(tmp_path / "t.csv"))) == [
        ("t.csv:2", ("one", {"by": "me"})),
        ("t.csv:3", ("t, w; o", {"by": "you"})),
    ]


def test_spaces_after_the_commas_are_no_part_of_names_and_cells(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    text = 'file_name, text, by\na.png, one, me\nb.png, "two, quoted", you\n'
    assert all_told(open_source(table(tmp_path, "t.csv", text))) == [
        ("t.csv:2", ("one", {"by": "me"})),
        ("t.csv:3", ("two, quoted", {"by": "you"})),
    ]


def test_capitals_of_a_column_do_not_matter_where_no_other_is_called_so(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    assert all_told(open_source(table(tmp_path, "t.csv", "Image,Caption\na.png,one\n"))) == [
        ("t.csv:2", ("one", None))
    ]
    rows_ = '{"Image": 1, "image": "a.png", "Text": 2, "caption": "one"}'
    assert all_told(open_source(table(tmp_path, "t.jsonl", rows_))) == [
        ("t.jsonl:1", ("one", {"Image": 1, "Text": 2}))
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_header_in_another_encoding_is_called_so(encoding: str, tmp_path: Path) -> None:
    place = table(tmp_path, "t.csv", "image,größe\na.png,1\n".encode(encoding))
    with pytest.raises(DataError, match="is not in UTF-8"):
        list(open_source(place))


@pytest.mark.parametrize(
    ("cells", "captions"),
    [
        (['"The" cat', '12" pizza', '"all"'], ['"The" cat', '12" pizza', '"all"']),  # no quoting
        (['"open', "b", 'c"'], ['"open', "b", 'c"']),  # a reader of quotes makes one row of it
        (['"two\nlines"', '"a ""b"""', "c"], ["two\nlines", 'a "b"', "c"]),  # as Python writes it
        (['"a\tb"', "b", '"c"'], ["a\tb", "b", "c"]),
    ],
)
def test_quotes_of_a_tsv_are_what_makes_sense(
    cells: list[str], captions: list[str], tmp_path: Path
) -> None:
    pictures(tmp_path, "a.png")
    text = "image\ttext\n" + "".join(f"a.png\t{cell}\n" for cell in cells) + "\n"
    found = all_told(open_source(table(tmp_path, "t.tsv", text)))
    assert [what for _, what in found] == [(caption, None) for caption in captions]


def test_a_json_list_is_a_table(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    rows_ = [{"image": "a.png", "caption": ["one", "two"], "id": 3}, 7, {"image": "b.png"}]
    (tmp_path / "t.json").write_text(json.dumps(rows_))
    assert all_told(open_source(str(tmp_path / "t.json"))) == [
        ("t.json:0", ("one", {"caption": ["one", "two"], "id": 3})),
        ("t.json:1", "unreadable row"),
        ("t.json:2", (None, None)),
    ]


def test_coco_is_a_row_an_image(tmp_path: Path) -> None:
    """Captions and boxes of COCO's two files; its ids count from anywhere, its order is free."""
    pictures(tmp_path, "train/a.png", "train/b.png")
    images = [{"id": 9, "file_name": "a.png", "width": 4}, {"id": 2, "file_name": "b.png"}]
    boxes = [{"image_id": 9, "id": 1, "bbox": [0, 1, 2, 3], "category_id": 18, "iscrowd": 0}]
    said = [{"image_id": 2, "id": 5, "caption": "one"}, {"image_id": 9, "id": 6, "caption": "dog"}]
    said += [{"image_id": 2, "id": 7, "caption": "two"}]
    whole = {"images": images, "annotations": boxes + said}
    whole["categories"] = [{"id": 18, "name": "dog"}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(whole))
    dog = {"bbox": [0, 1, 2, 3], "category_id": 18, "iscrowd": 0, "category": "dog"}
    assert all_told(open_source(str(path), root=str(tmp_path / "train"))) == [
        ("coco.json:0", ("dog", {"id": 9, "width": 4, "captions": ["dog"], "objects": [dog]})),
        ("coco.json:1", ("one", {"id": 2, "captions": ["one", "two"]})),
    ]
    points = [{"image_id": 2, "id": n, "keypoints": [1, 2, 2]} for n in (20, 21)]
    path.write_text(json.dumps({**whole, "annotations": boxes + said + points}))
    source = open_source(str(path), root=str(tmp_path / "train"))
    for _ in range(2):  # as for two parts
        assert len(all_told(source)) == 2
        assert source.notes.ignored == {"annotation with neither bbox nor caption": 2}
    for wrong, complaint in (
        ("{", "is not JSON"),
        ('"a"', "is a str. It should be a list"),
        (json.dumps({**whole, "images": images[:1]}), r"1 image_ids of annotations, such as 2"),
        (json.dumps({"images": [{"file_name": "a.png"}]}), "is not in the form of COCO: .*'id'"),
    ):
        path.write_text(wrong)
        with pytest.raises(DataError, match=complaint):
            list(open_source(str(path)))
