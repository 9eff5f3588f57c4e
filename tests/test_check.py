import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.data import index, storage
from diptych.data.check import REPLACED, check
from diptych.data.index import Manifest, Shard
from diptych.data.pack import Sample, tar
from diptych.data.verbs import app

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


@pytest.fixture
def healthy(samples: Samples, dataset: Dataset) -> Manifest:
    return dataset([samples(6), samples(6, first=6)])


def damage(manifest: Manifest, change: Callable[[bytearray], bytes | bytearray]) -> str:
    """Rewrites the second shard."""
    url = manifest.shards[1].url
    storage.write(url, bytes(change(bytearray(storage.read(url)))))
    return url


def rot(manifest: Manifest, number: int, change: Callable[[bytearray], object]) -> None:
    """Changes bytes of a shard where they lie: the same object, of the same size and time."""
    path = storage.local_path(manifest.shards[number].url)
    state, data = path.stat(), bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def header(data: bytes | bytearray, name: str) -> int:
    """Where the header of a member begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmember(name).offset


def flip(name: str) -> Callable[[bytearray], bytearray]:
    def change(data: bytearray) -> bytearray:
        data[header(data, name)] ^= 1
        return data

    return change


def cut(name: str, after: int) -> Callable[[bytearray], bytearray]:
    return lambda data: data[: header(data, name) + after]


def test_a_healthy_dataset_is_all_good(healthy: Manifest) -> None:
    done: list[Shard] = []
    found = check(healthy, done=done.append)
    assert (found.good, found.reasons, found.faults) == (12, {}, [])
    assert done == list(healthy.shards)


def test_a_changed_sample_is_counted_and_named(healthy: Manifest) -> None:
    url = damage(healthy, lambda data: data.replace(b"number 8", b"number 9"))
    found = check(healthy)
    assert (found.good, found.reasons) == (11, {"changed": 1})
    reasons, sentences = zip(*found.faults, strict=True)
    assert reasons == ("replaced shard", "changed")
    assert sentences[1].startswith(f"{url}: 000008.")


def test_samples_that_cannot_be_decoded_are_counted(samples: Samples, dataset: Dataset) -> None:
    shard = samples(6)
    for number, extension, blob in ((1, "png", b"x"), (3, "json", b"["), (4, "txt", b"\xff")):
        shard[number][1][extension] = blob
    found = check(dataset([shard, samples(2)]))
    assert (found.good, found.reasons) == (5, {"cannot be decoded": 3})
    assert [sentence.split(": ")[1].split()[0] for _, sentence in found.faults] == [
        "000001.png",
        "000003.json",
        "000004.txt",
    ]


# 000008 is the third of the six samples of the second shard; its members are png, txt and json.
@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (cut("000008.png", 0), 4),
        (cut("000008.png", 100), 4),
        (cut("000008.png", 520), 4),
        (cut("000008.txt", 0), 4),
        (cut("000008.txt", 520), 4),
        (cut("000008.json", 520), 4),
        (cut("000009.png", 0), 3),
        (cut("000006.png", 520), 6),
        (flip("000008.png"), 4),
        (flip("000008.json"), 4),
        (flip("000006.png"), 6),
        (flip("000011.json"), 1),
        (lambda data: b"", 6),
        (lambda data: b"\x1f\x8b no tar" * 999, 6),
    ],
)
def test_what_an_unreadable_shard_loses_is_counted_exactly(
    healthy: Manifest, change: Callable[[bytearray], bytearray], lost: int
) -> None:
    url = damage(healthy, change)
    found = check(healthy)
    assert (found.good, found.reasons) == (12 - lost, {"unreadable shard": lost})
    assert (found.replaced, found.faults[-1][0]) == (1, "unreadable shard")
    assert all(url in sentence for _, sentence in found.faults)


def test_a_shard_that_lost_samples_at_its_end(samples: Samples, healthy: Manifest) -> None:
    damage(healthy, lambda data: tar(samples(4, first=6)))
    found = check(healthy)
    assert (found.good, found.reasons) == (10, {"missing sample": 2})


def test_a_sample_that_lost_its_last_member(samples: Samples, healthy: Manifest) -> None:
    shard = samples(6, first=6)
    del shard[5][1]["json"]
    damage(healthy, lambda data: tar(shard))
    found = check(healthy)
    assert (found.good, found.reasons) == (11, {"missing sample": 1})


def test_a_shard_that_gained_samples(samples: Samples, healthy: Manifest) -> None:
    damage(healthy, lambda data: tar(samples(8, first=6)))
    found = check(healthy)
    assert (found.good, found.reasons) == (12, {"not indexed": 2})


def test_the_same_samples_at_other_places_are_not_good(samples: Samples, healthy: Manifest) -> None:
    shard = samples(6, first=6)
    shard[2][1]["txt"] += b" " * 512  # every later sample moves, and the index misses them all
    damage(healthy, lambda data: tar(shard))
    found = check(healthy)
    assert (found.good, found.reasons) == (8, {"not indexed": 4})


def test_a_missing_shard_and_a_damaged_index_do_not_stop_the_count(
    samples: Samples, dataset: Dataset
) -> None:
    manifest = dataset([samples(3), samples(4), samples(5)])
    storage.delete(manifest.shards[0].url)
    storage.write(manifest.lines_url(manifest.shards[1]), b"{}")
    found = check(index.open_manifest(manifest.url))
    assert (found.good, found.reasons) == (5, {"unreachable shard": 3, "stale index": 4})
    assert [reason for reason, _ in found.faults] == ["unreachable shard", "stale index"]


def flip_data(name: str) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[header(data, name) + 512] ^= 255

    return change


def test_bytes_that_rot_are_not_a_replaced_shard(healthy: Manifest) -> None:
    rot(healthy, 1, flip_data("000008.txt"))
    found = check(healthy)
    assert (found.good, found.reasons, found.replaced) == (11, {"changed": 1}, 0)


def test_an_object_written_anew_is_a_reason_of_its_own(
    bucket: str, samples: Samples, healthy: Manifest
) -> None:
    url = healthy.shards[0].url
    before = storage.read(url)
    storage.write(url, before)  # the same bytes at another time
    found = check(healthy)
    assert (found.good, found.reasons, found.replaced) == (12, {}, 1)
    assert "is not the object that was indexed" in found.faults[0][1]
    far = f"{bucket}/replaced/00000.tar"
    storage.write(far, tar(samples(4)))
    manifest = index.build([far])
    assert check(manifest).replaced == 0
    storage.write(far, tar(samples(4, first=1)))
    found = check(manifest)
    assert (found.good, found.reasons, found.replaced) == (0, {"not indexed": 4}, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_of_damage_is_counted_exactly(
    samples: Samples, dataset: Dataset, threads: int
) -> None:
    shards = [samples(6, first=6 * number) for number in range(10)]
    shards[0][2][1]["png"] = b"never was one"
    manifest = dataset(shards)
    urls = [shard.url for shard in manifest.shards]

    def rewrite(number: int, change: Callable[[bytearray], bytes | bytearray]) -> None:
        storage.write(urls[number], bytes(change(bytearray(storage.read(urls[number])))))

    for name in ("000007.png", "000009.json", "000009.txt"):
        rot(manifest, 1, flip_data(name))  # two samples changed
    rewrite(2, cut("000014.png", 100))  # four lost, two good
    rewrite(3, lambda data: tar(shards[3][:5]))  # one missing, five good
    rewrite(4, lambda data: tar([*shards[4], *samples(2, first=90)]))  # two too many
    storage.delete(urls[5])
    storage.write(manifest.lines_url(manifest.shards[6]), b"{}")
    rewrite(7, lambda data: tar(shards[7]))  # the same bytes
    rot(manifest, 8, lambda data: flip("000050.txt")(data))  # a header: 000050 and on, four lost
    done: list[Shard] = []
    found = check(index.open_manifest(manifest.url), done.append, threads=threads, most=1)
    assert found.reasons == {
        "cannot be decoded": 1,
        "changed": 2,
        "unreadable shard": 4 + 4,
        "missing sample": 1,
        "not indexed": 2,
        "unreachable shard": 6,
        "stale index": 6,
    }
    assert (found.good, found.replaced) == (5 + 4 + 2 + 5 + 6 + 0 + 0 + 6 + 2 + 6, 4)
    assert sorted(reason for reason, _ in found.faults) == sorted({*found.reasons, REPLACED})
    assert [shard.url for shard in done] == urls


def test_the_command_counts_shows_the_first_and_exits_with_2(
    samples: Samples, dataset: Dataset
) -> None:
    shards = [samples(6, first=6 * number) for number in range(2)]
    for _, members in shards[0]:
        members["png"] = b"x"
    manifest = dataset(shards)
    runner = CliRunner()
    done = runner.invoke(app, ["check", manifest.url, "--json", "--most", "2"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 2
    assert (facts["good"], facts["cannot be decoded"], facts["of"]) == (6, 6, 12)
    assert [reason for reason, _ in facts["faults"]] == ["cannot be decoded"] * 2
    done = runner.invoke(app, ["check", manifest.url])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 5)
    assert "cannot be decoded" in done.stdout
    assert runner.invoke(app, ["check", dataset([samples(2)], "good").url]).exit_code == 0


def test_what_a_key_would_tell_a_terminal_is_shown(dataset: Dataset) -> None:
    manifest = dataset([[("\x1b[31mred\x07", {"png": b"no image"})]])
    ((_, sentence),) = check(manifest).faults
    assert r"00000.tar: \x1b[31mred\x07.png cannot be decoded" in sentence


def test_a_member_that_is_never_decoded_is_checked_and_not_held(tmp_path: Path) -> None:
    """A film of 256 MiB, which both verbs read in pieces."""
    size, url = 256 << 20, str(tmp_path / "0.tar")
    with open(url, "wb") as file:
        info = tarfile.TarInfo("a.mp4")
        info.size = size
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, io.SEEK_CUR)
        file.write(tar([("a", {"txt": b"x"})]))
    tracemalloc.start()
    manifest = index.build([url])
    found = check(manifest)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.good, dict(found.reasons)) == (1, {})
    assert most < 64 << 20
    with open(url, "r+b") as file:
        file.seek(size // 2)
        file.write(b"x")
    found = check(manifest)
    assert (found.good, dict(found.reasons), found.replaced) == (0, {"changed": 1}, 1)
    assert "0.tar: a has other bytes than were indexed" in found.faults[-1][1]
