import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from diptych.data import easyvqa, pack, storage
from diptych.data.easyvqa import Question
from diptych.data.items import Item, Members, Seen, Unreadable, key_of, reads_back, validates
from diptych.data.pack import Packed, Sample, Shape, given, pack_items
from diptych.data.records import scan
from diptych.errors import DataError

SAMPLES = [(f"{n:03d}", {"txt": str(n).encode(), "json": b"{}"}) for n in range(7)]


def read_by_webdataset(urls: list[str]) -> list[Sample]:
    opened = [{"url": url, "stream": io.BytesIO(storage.read(url))} for url in urls]
    return [
        (row.pop("__key__"), {name: blob for name, blob in row.items() if name != "__url__"})
        for row in group_by_keys(tar_file_expander(opened))
    ]


def test_shards_are_whole_and_webdataset_reads_them(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    out = str(tmp_path / "out")
    urls = pack.pack(iter(SAMPLES), out, per_shard=3, done=lambda *each: told.append(each))
    assert urls == [f"file://{out}/{n:05d}.tar" for n in range(3)]
    assert told == list(zip(urls, (3, 3, 1), strict=True))
    assert read_by_webdataset(urls) == SAMPLES


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    urls = [pack.pack(SAMPLES, str(tmp_path / name), per_shard=7)[0] for name in "ab"]
    assert storage.read(urls[0]) == storage.read(urls[1]) == pack.tar(SAMPLES)
    assert pack.scattered(SAMPLES, 1) == pack.scattered(SAMPLES, 1)
    assert sorted(pack.scattered(SAMPLES, 1)) == SAMPLES != pack.scattered(SAMPLES, 1)
    with tarfile.open(fileobj=io.BytesIO(storage.read(urls[0]))) as archive:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in archive} == {(0, 0, 0, "")}


def test_tars_of_something_else_are_never_overwritten(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    storage.write(f"{out}/00000.tar", b"precious")
    with pytest.raises(DataError, match="holds tars already"):
        pack.pack(SAMPLES, out)
    assert storage.children(out) == ["00000.tar"]
    assert storage.read(f"{out}/00000.tar") == b"precious"


def test_nothing_to_pack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples were found"):
        pack.pack([], str(tmp_path))
    with pytest.raises(DataError, match=r"none of 2 inputs is one. See .*skipped.jsonl"):
        pack_items(items(2, (0, 1)), str(tmp_path / "bad"), Shape(skips=1))


@pytest.mark.parametrize(
    "sample",
    [
        ("v1.2", {"jpg": b"x"}),
        ("a/b.c", {"jpg": b"x"}),
        ("", {"jpg": b"x"}),
        ("a\0b", {"jpg": b"x"}),
        ("\udcff", {"jpg": b"x"}),
        ("__meta__/a", {"jpg": b"x"}),
        ("a", {"JPG": b"x"}),
    ],
)
def test_a_key_that_would_be_read_back_as_another_is_refused(
    tmp_path: Path, sample: Sample
) -> None:
    with pytest.raises(DataError, match="would be read back as another"):
        pack.pack([SAMPLES[0], sample], str(tmp_path))


def test_two_samples_of_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 8 inputs cannot be packed \(1 duplicate key\)"):
        pack.pack([*SAMPLES, SAMPLES[2]], str(tmp_path))


NAMES = [
    *(
        "photo",
        "sub/photo",
        "v1.2",
        "v1_2",
        "v1.2.",
        ".hidden",
        "a.b/c",
        "a b",
        "a\tb",
        "grün/日本",
    ),
    *("../x", "/abs/x", "__m__/x", "..m../x", "x" * 300, "", "a//b", "\udcff", "<script>", "a\\b"),
]


def test_keys_are_sound_unique_and_the_same_everywhere(tmp_path: Path) -> None:
    keys = [key_of(name) for name in NAMES]
    assert len(set(keys)) == len(NAMES)
    assert all(reads_back(key, "jpg") and len(key) < 220 for key in keys)
    assert keys[:2] == ["photo", "sub/photo"]
    assert keys[2] == "v1_2-" + key_of("v1.2")[-8:] == "v1_2-87ecd146"
    assert keys[9] == "grün/日本"
    assert key_of("photo", "row 1") != key_of("photo", "row 2") != key_of("photo")
    samples = [(key, {"txt": b"x", "seg.png": b"y"}) for key in keys]
    found = read_by_webdataset(pack.pack(samples, str(tmp_path)))
    assert found == samples
    with storage.open_read(f"{tmp_path}/00000.tar") as file:
        assert [(record.key, blobs) for record, blobs in scan(file, shard="x")] == samples


def test_seen_keys_stay_seen_when_they_are_put_away() -> None:
    seen = Seen(batch=10)
    assert all(seen.add(f"{n}") for n in range(95))
    assert not any(seen.add(f"{n}") for n in range(95))


def test_a_split_does_not_depend_on_anything_else() -> None:
    names = [f"picture {n}" for n in range(4000)]
    chosen = {name for name in names if validates(name, 0.1)}
    assert 320 < len(chosen) < 480
    assert chosen < {name for name in names if validates(name, 0.2)}
    assert not [name for name in names if validates(name, 0.0)]


def items(
    count: int, bad: tuple[int, ...] = (), stamps: dict[int, str] | None = None
) -> list[Item]:
    """`count` inputs of 1,000 bytes; the bad ones are unreadable."""

    def one(number: int) -> Item:
        def load() -> Members:
            if number in bad:
                raise Unreadable("too bad", f"is {number}")
            return {"txt": f"{number:05d}".encode() * 200}

        stamp = (stamps or {}).get(number, "same")
        return Item(f"in/{number}", f"{number:05d}", "g", stamp, load)

    return [one(number) for number in range(count)]


def keys_in(packed: Packed) -> list[list[int]]:
    return [[int(key) for key, _ in read_by_webdataset([url])] for url in packed.urls]


def lines(out: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in storage.read(f"{out}/skipped.jsonl").splitlines()]


def test_what_cannot_be_read_is_counted_and_listed(tmp_path: Path) -> None:
    bad = (0, 3, 4, 9, 10, 19)
    found = pack_items(items(20, bad), str(tmp_path), Shape(samples=4, skips=0.3))
    assert (found.inputs, found.samples, found.skipped) == (20, 14, {"too bad": 6})
    assert keys_in(found) == [[1, 2, 5, 6], [7, 8, 11, 12], [13, 14, 15, 16], [17, 18]]
    expected = [{"input": f"in/{n}", "reason": "too bad", "detail": f"is {n}"} for n in bad]
    assert lines(str(tmp_path)) == expected


def test_too_many_unreadable_inputs_stop_it_and_are_listed(tmp_path: Path) -> None:
    out, bad = str(tmp_path), tuple(range(8, 20))
    complaint = r"12 of 40 inputs cannot be packed \(12 too bad\), more than 25.0%.*skipped.jsonl"
    with pytest.raises(DataError, match=complaint):
        pack_items(items(40, bad), out, Shape(samples=8, skips=0.25))
    assert [line["input"] for line in lines(out)] == [f"in/{n}" for n in bad]
    found = pack_items(items(40, bad), out, Shape(samples=8, skips=0.3))
    assert (found.kept, found.samples, len(lines(out))) == (4, 28, 12)


def test_too_many_unreadable_inputs_stop_it_early(tmp_path: Path) -> None:
    bad = tuple(range(500, 700))
    with pytest.raises(DataError, match="200 of 1000 inputs cannot be packed"):
        pack_items(items(5000, bad), str(tmp_path), Shape(samples=800))
    assert len(lines(str(tmp_path))) == 200


def test_a_source_of_nothing_readable_stops_before_it_is_read_to_its_end(tmp_path: Path) -> None:
    def endless() -> Iterator[Item]:
        number = 0
        while True:
            number += 1
            yield replace(items(1, (0,))[0], key=f"{number}")

    with pytest.raises(DataError, match="1000 of 1000 inputs cannot be packed"):
        pack_items(endless(), str(tmp_path), Shape())


def test_shards_by_megabytes(tmp_path: Path) -> None:
    most = 0.0205  # 12 samples of 1,536 bytes and the end of the tar, which is cut to 10 KiB
    found = pack_items(items(26), str(tmp_path), Shape(samples=None, megabytes=most))
    assert [len(keys) for keys in keys_in(found)] == [12, 12, 2]
    assert max(storage.stat(url)[0] for url in found.urls) == 20480
    tiny = pack_items(items(2), str(tmp_path / "tiny"), Shape(samples=None, megabytes=1e-4))
    assert keys_in(tiny) == [[0], [1]]
    both = pack_items(items(25), str(tmp_path / "both"), Shape(samples=10, megabytes=most))
    assert [len(keys) for keys in keys_in(both)] == [10, 10, 5]


class Killed(BaseException):
    """Stands for a kill between two instructions."""


def interrupted(out: str, after: int, source: list[Item]) -> None:
    """Packs, and is killed at the sample number `after`."""
    count = 0

    def heard(key: str, members: Members) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise Killed

    with pytest.raises(Killed):
        pack_items(source, out, Shape(samples=4, skips=0.5), heard=heard)


@pytest.mark.parametrize("after", [0, 1, 4, 6, 8, 13])
def test_a_killed_pack_goes_on(tmp_path: Path, after: int, bucket: str) -> None:
    bad = (0, 3, 4, 9, 19)
    for out in (str(tmp_path / "out"), f"{bucket}/killed-{after}"):
        whole = pack_items(items(20, bad), f"{out}-whole", Shape(samples=4, skips=0.5))
        interrupted(out, after, items(20, bad))
        tars = [child for child in storage.children(out) if child.endswith(".tar")]
        assert len(tars) == after // 4, "a shard is there whole or not at all"
        times = [storage.stat(f"{out}/{name}") for name in tars]
        told: list[int] = []
        found = pack_items(items(20, bad), out, Shape(samples=4, skips=0.5), told=told.append)
        assert (found.kept, sum(told)) == (after // 4, 20)
        assert times == [storage.stat(f"{out}/{name}") for name in tars], "written again"
        assert (found.inputs, found.samples, found.skipped) == (20, 15, {"too bad": 5})
        for one, other in zip(found.urls, whole.urls, strict=True):
            assert storage.read(one) == storage.read(other)
        assert lines(out) == lines(f"{out}-whole")
        again = pack_items(items(20, bad), out, Shape(samples=4, skips=0.5))
        assert (again.kept, again.urls, again.skipped) == (4, found.urls, found.skipped)


def test_a_pack_killed_for_real_leaves_whole_shards_and_goes_on(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / "in").mkdir(exist_ok=True)
        pixels = bytes([number]) * (64 * 64)
        (tmp_path / f"in/{number:03d}.png").write_bytes(_png(pixels))
        (tmp_path / f"in/{number:03d}.txt").write_text(f"number {number}")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diptych", "data", "pack", str(tmp_path / "in"), str(out)]
    command += ["--per-shard", "2", "--vocabulary", "0", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out / "pack/00003.json").exists() and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)["parts"]["all"]
    assert (told["samples"], told["shards"], told["skipped"]) == (60, 30, {})
    assert told["kept"] >= 4
    assert not [name for name in os.listdir(out) if name.endswith(".part")]
    urls = [str(out / f"{number:05d}.tar") for number in range(30)]
    assert [key for key, _ in read_by_webdataset(urls)] == [f"{n:03d}" for n in range(60)]


def _png(pixels: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("L", (64, 64), pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        items(20, stamps={2: "other"}),
        items(20)[1:],
        [*items(5)[::-1], *items(20)[5:]],
        items(3),
    ],
    ids=["changed", "removed", "reordered", "shortened"],
)
def test_a_changed_source_is_noticed(tmp_path: Path, changed: list[Item]) -> None:
    interrupted(str(tmp_path), 9, items(20))
    with pytest.raises(DataError, match=r"the source has changed since 0000\d.tar was packed"):
        pack_items(changed, str(tmp_path), Shape(samples=4, skips=0.5))


def test_a_source_that_grew_after_it_was_packed_is_noticed(tmp_path: Path) -> None:
    for count in (8, 9):
        pack_items(items(count), f"{tmp_path}/{count}", Shape(samples=4))
        with pytest.raises(DataError, match="the source has changed"):
            pack_items(items(12), f"{tmp_path}/{count}", Shape(samples=4))


def test_other_options_are_noticed(tmp_path: Path) -> None:
    out = str(tmp_path)
    pack_items(items(8), out, Shape(samples=4), meaning={"longest": 256})
    with pytest.raises(DataError, match="was packed with longest = 256, not 512"):
        pack_items(items(8), out, Shape(samples=4), meaning={"longest": 512})
    with pytest.raises(DataError, match="was packed with samples = 4, not 5"):
        pack_items(items(8), out, Shape(samples=5), meaning={"longest": 256})


def test_a_damaged_journal_is_an_error(tmp_path: Path) -> None:
    pack_items(items(8), str(tmp_path), Shape(samples=4))
    for name in ("00001.json", "options.json"):
        storage.write(f"{tmp_path}/pack/{name}", b"{")
        with pytest.raises(DataError, match=f"{name} is damaged"):
            pack_items(items(8), str(tmp_path), Shape(samples=4))


def test_a_shard_that_was_cut_or_deleted_is_packed_again(tmp_path: Path) -> None:
    found = pack_items(items(12), str(tmp_path), Shape(samples=4))
    before = [storage.read(url) for url in found.urls]
    storage.write(found.urls[1], before[1][:700])
    again = pack_items(items(12), str(tmp_path), Shape(samples=4))
    assert again.kept == 1
    assert [storage.read(url) for url in again.urls] == before


def test_a_shard_larger_than_a_part_goes_to_a_bucket(bucket: str) -> None:
    blob = os.urandom(3 << 20)
    samples = [(f"{n}", {"bin": blob}) for n in range(14)]  # 42 MiB: parts of 16
    (url,) = pack.pack(samples, f"{bucket}/large")
    assert read_by_webdataset([url]) == samples


def test_inputs_in_memory_are_few(tmp_path: Path) -> None:
    under_way, most = 0, 0

    def source() -> Iterator[Item]:
        nonlocal under_way, most
        for one in items(200):
            under_way += 1
            most = max(most, under_way)
            yield one

    def heard(key: str, members: Members) -> None:
        nonlocal under_way
        under_way -= 1

    pack_items(source(), str(tmp_path), Shape(samples=50), threads=3, heard=heard)
    assert most <= 2 * 3 + 2


def test_a_sample_in_memory_is_an_item() -> None:
    item = given(SAMPLES[0])
    assert (item.key, item.load()) == SAMPLES[0]
    assert item.stamp != given(("000", {"txt": b"other", "json": b"{}"})).stamp


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


def test_an_unknown_split_is_an_error() -> None:
    with pytest.raises(DataError, match="'val' is no split of easy-VQA: train or test"):
        easyvqa.samples("val")


def test_an_unknown_question_is_an_error() -> None:
    for text, answer in (("who?", "yes"), ("is there a circle?", "maybe")):
        with pytest.raises(DataError, match="no statement can be made"):
            easyvqa.statement(Question(text, answer, 0))
