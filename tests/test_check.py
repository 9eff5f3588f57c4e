import io
import tarfile
from collections.abc import Callable

import pytest

from diptych.data import index, storage
from diptych.data.check import check
from diptych.data.index import Manifest, Shard
from diptych.data.pack import Sample, tar

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
    assert found.faults[0][1].startswith(f"{url}: 000008.")


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
    assert url in found.faults[0][1]


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
