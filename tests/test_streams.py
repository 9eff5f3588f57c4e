import importlib
import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from diptych.data import storage, stream
from diptych.data.pack import Sample, tar
from diptych.data.streams import Stream
from diptych.errors import DataError, ShardError, StorageError

Samples = Callable[..., list[Sample]]
wds: Any = importlib.import_module("webdataset")  # its stages have no types


@pytest.fixture
def shards(samples: Samples, tmp_path: Path) -> str:
    """Five shards of seven samples; a pattern of their URLs."""
    for number in range(5):
        storage.write(f"{tmp_path}/{number:03d}.tar", tar(samples(7, first=7 * number)))
    return f"file://{tmp_path}/{{000..004}}.tar"


def webdataset(urls: list[str]) -> list[dict[str, Any]]:
    """What the stages yield that `webdataset.WebDataset` is made of."""
    opened = [{"url": url, "stream": io.BytesIO(storage.read(url))} for url in urls]
    return list(group_by_keys(tar_file_expander(opened)))


def written(path: Path, names: list[str], kind: int) -> None:
    with tarfile.open(path, "w", format=kind) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif name.startswith("link"):
                info.type, info.linkname = tarfile.SYMTYPE, names[0]
            else:
                info.size = 700 * number
            blob = bytes([number % 256]) * info.size
            archive.addfile(info, io.BytesIO(blob))


NAMES = [
    *("a.jpg", "a.TXT", "a.seg.png", "b.jpg", "sub/", "sub.dir/c.jpg", "sub.dir/c.json"),
    *("a.jpg", "no_suffix", ".hidden", "__meta__/x.jpg", "__meta__", "__x__.jpg", "link.jpg"),
    *("d" * 150 + ".jpg", "d" * 150 + ".txt", "e/" * 120 + "f.jpg", "grün/日本.jpg", "x y.jpg"),
    *("./g.jpg", "./g.txt", "h..jpg", "i.", "i.jpg"),
]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_stream_yields_what_webdataset_yields(tmp_path: Path, kind: int) -> None:
    written(tmp_path / "000.tar", NAMES, kind)
    written(tmp_path / "001.tar", NAMES[::-1], kind)
    urls = f"file://{tmp_path}/{{000..001}}.tar"
    found, theirs = list(stream(urls)), webdataset(storage.expand(urls))
    assert len(found) > 20
    assert found == theirs
    assert [list(sample) for sample in found] == [list(sample) for sample in theirs]


def test_a_stream_of_a_bucket_needs_no_index(bucket: str, samples: Samples) -> None:
    for number in range(3):
        storage.write(f"{bucket}/stream/{number:03d}.tar", tar(samples(4, first=4 * number)))
    found = list(stream(f"{bucket}/stream/{{000..002}}.tar"))
    assert [(each["__key__"], each["__url__"]) for each in found] == [
        (f"{number:06d}", f"{bucket}/stream/{number // 4:03d}.tar") for number in range(12)
    ]
    assert found == list(stream(f"{bucket}/stream/*.tar"))


def keys(found: Any) -> list[str]:
    return [sample["__key__"] for sample in found]


def test_ranks_share_the_shards_as_webdataset_deals_them(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for world in (1, 2, 5):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            theirs = list(wds.split_by_node(storage.expand(shards)))
            assert list(stream(shards, rank=rank, world=world)) == webdataset(theirs)
    with pytest.raises(DataError, match="5 shards for 6 ranks: 1 would get no samples"):
        stream(shards, world=6)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(DataError, match=f"no rank {rank} of {world}"):
            stream(shards, rank=rank, world=world)
    with pytest.raises(DataError, match="no URL of a shard"):
        stream([])


@pytest.mark.parametrize("shuffle", [0, 10])
def test_spawned_workers_share_the_shards(shards: str, shuffle: int) -> None:
    every = stream(shards, shuffle=shuffle)
    loader = DataLoader(every, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    found = keys(loader)
    assert sorted(found) == sorted(keys(stream(shards)))
    if not shuffle:
        assert [key for key in found if int(key) // 7 % 2 == 0] == [
            key for key in keys(every) if int(key) // 7 % 2 == 0
        ]


def test_a_shuffle_is_a_function_of_seed_and_epoch(shards: str) -> None:
    def shuffled(seed: int, epoch: int, size: int = 10) -> list[str]:
        one = stream(shards, shuffle=size, seed=seed)
        one.set_epoch(epoch)
        return keys(one)

    assert shuffled(1, 0) == shuffled(1, 0)
    orders = {tuple(shuffled(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == keys(stream(shards)) for order in orders)
    shards_alone = [int(key) // 7 for key in shuffled(1, 0, size=1)]
    assert shards_alone != sorted(shards_alone)


def test_workers_that_stay_hear_of_the_epoch(shards: str) -> None:
    one = stream(shards, shuffle=10)
    loader = DataLoader(
        one,
        batch_size=None,
        num_workers=1,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    orders: list[list[str]] = []
    for epoch in range(2):
        one.set_epoch(epoch)
        orders.append(keys(loader))
        assert orders[-1] == keys(one)
    assert orders[0] != orders[1]


def test_a_stream_is_a_dataset_and_travels(shards: str) -> None:
    one = stream(shards, shuffle=3, seed=5)
    assert isinstance(one, IterableDataset)
    assert keys(pickle.loads(pickle.dumps(one))) == keys(one) == keys(one)


def test_a_stream_composes_with_webdatasets_stages(shards: str) -> None:
    pipeline = wds.DataPipeline(
        stream(shards),
        wds.shuffle(5),
        wds.decode("rgb8"),
        wds.to_tuple("png", "json", "txt"),
        wds.batched(8),
    )
    batches = list(pipeline)
    assert [len(texts) for _, _, texts in batches] == [8, 8, 8, 8, 3]
    assert batches[0][0].shape == (8, 8, 8, 3)
    assert {record["answer"] for record in batches[0][1]} == {"yes"}
    loader = DataLoader(wds.DataPipeline(stream(shards), wds.map(dict)), batch_size=None)
    assert keys(loader) == keys(stream(shards))


def test_a_damaged_shard_is_an_error_or_told(shards: str, samples: Samples) -> None:
    url = storage.expand(shards)[1]
    whole = storage.read(url)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        place = archive.getmember("000010.txt").offset
    storage.write(url, whole[:place])
    with pytest.raises(ShardError, match=r"001\.tar"):
        list(stream(shards))
    faults: list[ShardError] = []
    found = list(stream(shards, on_fault=faults.append))
    assert keys(found) == [f"{n:06d}" for n in range(35) if n not in (10, 11, 12, 13)]
    assert all(set(sample) > {"png", "txt", "json"} for sample in found), "half a sample"
    assert len(faults) == 1


def test_what_cannot_be_streamed_is_an_error(tmp_path: Path) -> None:
    for url, complaint in (("pipe:cat x.tar", "refused"), (f"{tmp_path}/*.tar", "matches nothing")):
        with pytest.raises(StorageError, match=complaint):
            stream(url)


def test_importing_data_does_not_import_torch() -> None:
    code = "import sys, diptych.data; assert 'torch' not in sys.modules; "
    code += "from diptych.data import stream; import diptych.data.streams; "
    code += "assert diptych.data.stream is stream and callable(stream)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(stream, Callable) and Stream.__module__ == "diptych.data.streams"
    import diptych.data

    with pytest.raises(AttributeError, match="no attribute 'streem'"):
        diptych.data.streem  # type: ignore[attr-defined]  # noqa: B018
