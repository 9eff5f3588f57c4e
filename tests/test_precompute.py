"""A cache of encoder outputs: written once, gone on with, refused when stale, joined by key."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from diptych.config import plain
from diptych.data import index, rows, storage
from diptych.data.cache import Spec, command, content, open_cache
from diptych.data.check import check
from diptych.data.decode import sample
from diptych.data.index import Manifest
from diptych.data.pack import Sample, tar
from diptych.data.precompute import Done, begin, precompute
from diptych.data.transforms import Frame, frame
from diptych.errors import DataError, RecipeError, ShardError, StaleCacheError
from diptych.pretrain.encoders import Canny, Grid

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]
SIZE = 16


class Sums:
    """An encoder that can be checked by hand: sums of the pixels, and of the text's letters."""

    def __init__(self, digest: str = "d1", scale: float = 1.0, stop_at: int | None = None) -> None:
        self.name, self.digest, self.scale, self.stop_at = "sums", digest, scale, stop_at
        self.seen = 0

    def encode(
        self, images_BCHW: np.ndarray | None, texts: Sequence[str] | None
    ) -> dict[str, Sequence[np.ndarray]]:
        rows = len(texts or []) if images_BCHW is None else len(images_BCHW)
        self.seen += rows
        if self.stop_at is not None and self.seen > self.stop_at:
            raise KeyboardInterrupt
        found: dict[str, Sequence[np.ndarray]] = {}
        if images_BCHW is not None:
            found["pixels"] = images_BCHW.mean((2, 3), dtype=np.float32) * self.scale
        if texts is not None:
            found["letters"] = [np.frombuffer(text.encode(), np.uint8) for text in texts]
        return found


def spec(**other: object) -> Spec:
    values = {"encoder": "sums", "encoder_digest": "d1", "reads": ("image", "text")}
    return Spec.model_validate(
        {**values, "sizes": ((SIZE, SIZE),), "exact": False, "text": "txt", **other}
    )


TEXTS = {"reads": ("text",), "sizes": None, "exact": None}
IMAGES = spec(reads=("image",), text=None)


@pytest.fixture
def three(dataset: Dataset, samples: Samples) -> Manifest:
    """Three shards of 4, 5 and 6 samples."""
    return dataset([samples(4), samples(5, 10), samples(6, 20)])


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def records(manifest: Manifest, number: int) -> list[index.Record]:
    return [entry.record for entry in index.entries(manifest, manifest.shards[number])]


def direct(manifest: Manifest, number: int, place: int) -> tuple[np.ndarray, str]:
    """(mean of the channels, text) of a sample, straight from the source."""
    record = records(manifest, number)[place]
    url = manifest.shards[number].url
    blobs = {
        name: storage.read(url, member.offset, member.offset + member.size)
        for name, member in record.members.items()
    }
    found = sample(record, blobs, shard=url)
    pixels_CHW, _ = frame(found["image"], Frame(width=SIZE, height=SIZE), 0)
    pixels = pixels_CHW.numpy().mean((1, 2), dtype=np.float32)
    return pixels.astype(np.float16), found["text"]


def test_rows_are_what_the_encoder_gives(three: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    done = precompute(three, Sums(), spec(), str(out), batch=2)
    assert [(one.shard, one.samples, one.fresh) for one in done] == [
        ("00000.tar", 4, True),
        ("00001.tar", 5, True),
        ("00002.tar", 6, True),
    ]
    cache = open_cache(str(out), three, **plain(spec()))
    for number in range(3):
        for place, record in enumerate(records(three, number)):
            found = cache.of(f"{number:05d}.tar", record)
            pixels, text = direct(three, number, place)
            assert sorted(found) == ["letters", "pixels"]
            assert found["pixels"].dtype == np.float16
            np.testing.assert_array_equal(found["pixels"], pixels)
            assert bytes(found["letters"]).decode() == text


def test_the_tars_are_plain_shards(three: Manifest, tmp_path: Path) -> None:
    """webdataset reads them, `data index` indexes them, and nothing else lies in them."""
    out = tmp_path / "cache"
    precompute(three, Sums(), spec(), str(out))
    url = str(out / "00001.tar")
    with open(url, "rb") as stream:
        read = list(group_by_keys(tar_file_expander([{"url": url, "stream": stream}])))
    keys = [record.key for record in records(three, 1)]
    assert [row["__key__"] for row in read] == keys
    members = {name for row in read for name in row if not name.startswith("__")}
    assert members == {"json", "letters.npy", "pixels.npy"}
    assert np.load(io.BytesIO(read[0]["pixels.npy"])).shape == (3,)
    checked = check(index.open_manifest(str(out)))
    assert (checked.good, checked.faults) == (15, [])
    indexed = index.build([url], str(tmp_path / "other"))
    assert [record.key for record in records(indexed, 0)] == keys


def test_bytes_are_the_same_each_time(three: Manifest, tmp_path: Path) -> None:
    for name in ("a", "b"):
        precompute(three, Sums(), spec(), str(tmp_path / name), batch=3)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")


def test_a_second_run_goes_on(three: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        precompute(three, Sums(stop_at=6), spec(), str(out), batch=2)
    assert list(tars(out)) == ["00000.tar"]
    with pytest.raises(
        StaleCacheError, match=r"not finished. Go on: diptych data precompute .*set"
    ):
        open_cache(str(out), three)
    second = Sums()
    told: list[Done] = []
    precompute(three, second, spec(), str(out), batch=2, told=told.append)
    assert second.seen == 5 + 6
    assert [one.fresh for one in told] == [False, True, True]
    precompute(three, Sums(), spec(), str(tmp_path / "whole"), batch=2)
    assert tars(out) == tars(tmp_path / "whole")
    third = Sums()
    precompute(three, third, spec(), str(out), batch=64)
    assert third.seen == 0


OTHERS = [
    ({"encoder_digest": "d2"}, "encoder_digest d1", "encoder_digest d2"),
    ({"sizes": ((32, 16),)}, "sizes [[16, 16]]", "sizes [[32, 16]]"),
    ({"exact": True}, "exact False", "exact True"),
    ({"dtype": "float32"}, "dtype float16", "dtype float32"),
    ({"text": "question"}, "text txt", "text question"),
    (
        {"reads": ("image",), "text": None},
        "reads ['image', 'text'], text txt",
        "reads ['image'], text None",
    ),
]


@pytest.mark.parametrize(("other", "made", "asked"), OTHERS, ids=[o[1].split()[0] for o in OTHERS])
def test_another_way_of_making_is_refused(
    other: dict[str, object], made: str, asked: str, three: Manifest, tmp_path: Path
) -> None:
    out = str(tmp_path / "cache")
    precompute(three, Sums(), spec(), out)
    before = tars(tmp_path / "cache")
    wanted = spec(**other)
    for use in (
        lambda: open_cache(out, three, **plain(wanted)),
        lambda: precompute(three, Sums(wanted.encoder_digest), wanted, out),
    ):
        with pytest.raises(StaleCacheError) as caught:
            use()
        said = str(caught.value)
        assert made in said
        assert asked in said
        assert f"diptych data precompute {storage.absolute(str(tmp_path / 'set'))}" in said
        assert f"--dtype {wanted.dtype}" in said
    assert tars(tmp_path / "cache") == before
    open_cache(out, three, **plain(spec()))


def test_the_command_names_weights_where_there_are_any() -> None:
    asked = {e.kind: command("s3://b/set", e.spec(), "s3://b/c") for e in (Canny(), Grid())}
    assert " --encoder canny --size " in asked["canny"]
    assert " --encoder grid=WEIGHTS --size " in asked["grid"]


def test_an_encoder_that_is_not_the_specs_is_refused(three: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has digest d2 here, and d1 where this began"):
        precompute(three, Sums("d2"), spec(), str(tmp_path / "cache"))


def test_a_changed_shard_is_made_again(
    three: Manifest, dataset: Dataset, samples: Samples, tmp_path: Path
) -> None:
    out = str(tmp_path / "cache")
    precompute(three, Sums(), spec(), out)
    old = records(three, 1)
    changed = dataset([samples(4), samples(4, 10) + samples(1, 99), samples(6, 20)])
    with pytest.raises(StaleCacheError, match=f"digest {three.digest}.*digest {changed.digest}"):
        open_cache(out, changed)
    again = Sums()
    done = precompute(changed, again, spec(), out)
    assert [one.fresh for one in done] == [False, True, False]
    cache = open_cache(out, changed)
    assert cache.of("00001.tar", records(changed, 1)[4])["letters"].size
    with pytest.raises(ShardError, match="no row of '000014'"):
        cache.of("00001.tar", old[4])


def test_new_captions_leave_latents_alone(
    dataset: Dataset, samples: Samples, tmp_path: Path
) -> None:
    out = str(tmp_path / "cache")
    first = samples(6)
    old = dataset([first])
    precompute(old, Sums(), IMAGES, out)
    reworded = dataset([[(key, {**members, "txt": b"reworded"}) for key, members in first]])
    assert reworded.digest != old.digest
    again = Sums()
    precompute(reworded, again, IMAGES, out)
    assert again.seen == 0
    open_cache(out, reworded).of("00000.tar", records(reworded, 0)[0])


def test_rows_are_joined_by_key_and_content(
    dataset: Dataset, samples: Samples, tmp_path: Path
) -> None:
    out = str(tmp_path / "cache")
    first = dataset([samples(6)])
    precompute(first, Sums(), IMAGES, out)
    cache = open_cache(out, first)
    mixed = [records(first, 0)[place] for place in (4, 1, 3)]
    held = cache.hold("00000.tar", mixed)
    for place, record in zip((4, 1, 3), mixed, strict=True):
        np.testing.assert_array_equal(held.of(record)["pixels"], direct(first, 0, place)[0])
    pairs = zip(samples(6), samples(6, 50), strict=True)
    other = [(key, members) for (key, _), (_, members) in pairs]
    stranger = records(dataset([other], "other"), 0)[2]
    with pytest.raises(ShardError, match=r"cache/00000\.tar: 000002 was made of other bytes"):
        cache.of("00000.tar", stranger)
    with pytest.raises(ShardError, match=r"no shard 00009\.tar"):
        cache.of("00009.tar", stranger)


def test_a_damaged_row_is_named(three: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    precompute(three, Sums(), IMAGES, str(out))
    cache = open_cache(str(out), three)
    entry = index.entries(cache.manifest, cache.manifest.shards[0])[2]
    shard = bytearray((out / "00000.tar").read_bytes())
    shard[entry.record.members["pixels.npy"].offset + 129] ^= 1
    (out / "00000.tar").write_bytes(bytes(shard))
    with pytest.raises(ShardError, match=r"00000\.tar: 000002\.pixels\.npy is damaged"):
        cache.of("00000.tar", records(three, 0)[2])
    assert cache.of("00000.tar", records(three, 0)[1])


def test_an_unreadable_sample_is_on_record(
    dataset: Dataset, samples: Samples, tmp_path: Path
) -> None:
    found = samples(6)
    found[2][1]["png"] = b"\x89PNG no more"
    broken = dataset([found])
    out = str(tmp_path / "cache")
    (done,) = precompute(broken, Sums(), IMAGES, out, batch=2)
    assert done.faults == 1
    assert done.first[0].startswith("000002.png cannot be decoded")
    assert precompute(broken, Sums(), IMAGES, out) == [replace(done, fresh=False)]
    cache = open_cache(out, broken)
    with pytest.raises(ShardError, match=r"000002 could not be encoded: .*cannot be decoded"):
        cache.of("00000.tar", records(broken, 0)[2])
    np.testing.assert_array_equal(
        cache.of("00000.tar", records(broken, 0)[3])["pixels"], direct(broken, 0, 3)[0]
    )


def test_bytes_that_were_not_indexed_stop_it(three: Manifest, tmp_path: Path) -> None:
    """Or mending the shard would leave its rows, which name the bytes of the index, as faults."""
    url = tmp_path / "set" / "00001.tar"
    whole = url.read_bytes()
    place = records(three, 1)[3].members["png"].offset + 20
    url.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(
        ShardError, match=r"00001\.tar: 000013\.png is not the file that was indexed"
    ):
        precompute(three, Sums(), IMAGES, str(tmp_path / "cache"))
    assert list(tars(tmp_path / "cache")) == ["00000.tar"]
    url.write_bytes(whole)
    assert not any(one.faults for one in precompute(three, Sums(), IMAGES, str(tmp_path / "cache")))


def test_a_shard_with_many_unreadable_samples_stops(
    dataset: Dataset, samples: Samples, tmp_path: Path
) -> None:
    found = samples(6)
    for _, members in found[1:4]:
        members.pop("png")
    with pytest.raises(ShardError, match=r"00000\.tar: .*it has no image.*mend it"):
        precompute(dataset([found]), Sums(), IMAGES, str(tmp_path / "cache"))
    assert not tars(tmp_path / "cache")
    with pytest.raises(ShardError, match="it has no text in 'capton'"):
        captions = spec(**TEXTS | {"text": "capton"})
        precompute(dataset([samples(6)]), Sums(), captions, str(tmp_path / "other"))


def test_a_record_field_is_the_text(three: Manifest, tmp_path: Path) -> None:
    out = str(tmp_path / "cache")
    questions = spec(**TEXTS | {"text": "question"})
    precompute(three, Sums(), questions, out)
    row = open_cache(out, three).of("00001.tar", records(three, 1)[0])
    assert bytes(row["letters"]) == b"is it number 10?"


def test_what_float16_cannot_hold_is_refused(three: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"0000\d\d\.pixels: .*float16. Use --dtype float32"):
        precompute(three, Sums(scale=1e4), IMAGES, str(tmp_path / "half"))
    single = IMAGES.model_copy(update={"dtype": "float32"})
    precompute(three, Sums(scale=1e4), single, str(tmp_path / "single"))
    row = open_cache(str(tmp_path / "single"), three).of("00000.tar", records(three, 0)[1])
    assert row["pixels"].dtype == np.float32
    with pytest.raises(ShardError, match="the encoder is broken"):
        precompute(three, Sums(scale=np.nan), single, str(tmp_path / "nan"))


def test_tars_that_are_no_cache_are_left_alone(three: Manifest, tmp_path: Path) -> None:
    before = tars(tmp_path / "set")
    with pytest.raises(DataError, match=r"holds tars but no cache\.json"):
        precompute(three, Sums(), spec(), str(tmp_path / "set"))
    assert tars(tmp_path / "set") == before


def test_what_is_no_cache_is_refused(three: Manifest, tmp_path: Path) -> None:
    with pytest.raises(StaleCacheError, match=r"no cache.json. Make one: diptych data precompute"):
        open_cache(str(tmp_path / "none"), three)
    begin(three, spec(), str(tmp_path / "cache"))
    with pytest.raises(RecipeError, match=r"'size'\. Did you mean 'sizes'"):
        open_cache(str(tmp_path / "cache"), three, size=3)
    note = tmp_path / "cache" / "cache.json"
    for text in ("{", "[]", "null", json.dumps({**json.loads(note.read_text()), "format": 99})):
        note.write_text(text)
        with pytest.raises(StaleCacheError, match=re.escape(str(note))):
            open_cache(str(tmp_path / "cache"), three)


def test_arrays_of_objects_are_never_read(three: Manifest, tmp_path: Path) -> None:
    """A cache whose tar somebody has filled with other things, and indexed."""
    out = tmp_path / "cache"
    precompute(three, Sums(), IMAGES, str(out))
    file, found = io.BytesIO(), list[Sample]()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    for place, blob in enumerate((file.getvalue(), file.getvalue()[:20], b"", b"PK\x03\x04")):
        record = records(three, 0)[place]
        said = json.dumps({"content": content(IMAGES, record)}).encode()
        found.append((record.key, {"json": said, "pixels.npy": blob}))
    storage.write(str(out / "00000.tar"), tar(found))
    index.build([str(out / name) for name in tars(out)])
    cache = open_cache(str(out), three)
    for record in records(three, 0):
        with pytest.raises(ShardError, match=rf"00000\.tar: {record.key}"):
            cache.of("00000.tar", record)


def test_samples_go_to_the_frame_of_their_shape(dataset: Dataset, tmp_path: Path) -> None:
    samples: list[Sample] = []
    shapes = [(40, 20), (20, 40), (30, 30), (41, 20), (400, 2)]
    for number, shape in enumerate(shapes):
        file = io.BytesIO()
        Image.new("RGB", shape, (number * 50, 0, 0)).save(file, "PNG")
        samples.append((f"{number:03d}", {"png": file.getvalue()}))
    mixed = dataset([samples])

    class Shapes(Sums):
        def encode(
            self, images_BCHW: np.ndarray | None, texts: Sequence[str] | None
        ) -> dict[str, Sequence[np.ndarray]]:
            assert images_BCHW is not None
            return {"shape": [np.array([*image.shape, image.max()]) for image in images_BCHW]}

    sizes = ((16, 16), (32, 16), (16, 32))
    wanted = IMAGES.model_copy(update={"sizes": sizes})
    precompute(mixed, Shapes(), wanted, str(tmp_path / "cache"))
    cache = open_cache(str(tmp_path / "cache"), mixed, sizes=sizes)
    held = cache.hold("00000.tar", records(mixed, 0))
    found = [held.of(record)["shape"].tolist() for record in records(mixed, 0)]
    frames = [(16, 32), (32, 16), (16, 16), (16, 32), (16, 32)]
    assert found == [[3, *size, number * 50] for number, size in enumerate(frames)]


def test_a_giant_shard_is_cut_into_batches(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is read at once than fits the limit, whatever the batch."""
    reads: list[int] = []

    def span(origin: index.Shard, start: int, end: int) -> bytes:
        reads.append(end - start)
        return whole(origin, start, end)

    whole = rows._span
    monkeypatch.setattr(rows, "_BATCH_BYTES", 100_000)
    monkeypatch.setattr(rows, "_span", span)
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    samples: list[Sample] = []
    for number, pixels in enumerate(noise):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        samples.append((f"{number:03d}", {"png": file.getvalue()}))
    precompute(dataset([samples]), Sums(), IMAGES, str(tmp_path / "cache"))
    assert len(reads) == 2
    assert max(reads) <= 100_000


def test_a_cache_in_a_bucket(easy: str, bucket: str) -> None:
    source = index.open_manifest(easy)
    out = f"{bucket}/caches/sums"
    precompute(source, Sums(), IMAGES, out)
    cache = open_cache(out, source, encoder="sums", sizes=[[SIZE, SIZE]])
    found = records(source, 3)
    held = cache.hold("00003.tar", found)
    for place in (0, 57, 99):
        np.testing.assert_array_equal(held.of(found[place])["pixels"], direct(source, 3, place)[0])
    again = Sums()
    precompute(source, again, IMAGES, out)
    assert again.seen == 0
