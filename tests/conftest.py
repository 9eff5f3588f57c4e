"""What several tests need: samples, a small dataset, a tokenizer."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest
import rank_faults
import torch
from PIL import Image

from diptych.cluster import crew
from diptych.cluster.bucket import serve
from diptych.cluster.launch import cluster
from diptych.cluster.shapes import Shape
from diptych.config import digest, plain
from diptych.data import easyvqa, index, storage, tokens
from diptych.data.batch import Batch
from diptych.data.draws import row_key
from diptych.data.index import Manifest
from diptych.data.make import words
from diptych.data.pack import Sample, pack, scattered, tar
from diptych.data.tokens import Text
from diptych.finetune.parts import KINDS
from diptych.pretrain import checkpoint
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.slices import put_slices
from diptych.pretrain.task import Task

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


def _sample(number: int) -> Sample:
    picture = io.BytesIO()
    color = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
    Image.new("RGB", (8, 8), color).save(picture, "PNG")
    record = {"question": f"is it number {number}?", "answer": "yes"}
    members = {
        "png": picture.getvalue(),
        "txt": f"a picture with number {number}".encode(),
        "json": json.dumps(record).encode(),
    }
    return f"{number:06d}", members


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """The test never takes 500 MB more than there were, not even for a moment."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _memory("VmRSS")
    except OSError:  # some sandboxes have no such file
        before = _memory("VmHWM")
    yield
    assert _memory("VmHWM") - before < 500 << 20


@pytest.fixture
def samples() -> Samples:
    """`samples(3, first=7)`: three samples of 8 x 8 pixels, 7 the first one's number."""
    return lambda count, first=0: [_sample(number) for number in range(first, first + count)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """`dataset([shard, shard])`: shards of samples at tmp_path/set, indexed."""

    def make(shards: Sequence[list[Sample]], folder: str = "set") -> Manifest:
        urls = [str(tmp_path / folder / f"{number:05d}.tar") for number in range(len(shards))]
        for url, found in zip(urls, shards, strict=True):
            storage.write(url, tar(found))
        return index.build(urls)

    return make


@pytest.fixture(scope="session")
def text() -> Text:
    """A tokenizer of 12 ids a text that knows the words of `samples`."""
    words = [f"a picture with number {number} is it yes?" for number in range(40)]
    return tokens.from_text(tokens.learn(words, 200), 12)


@pytest.fixture(scope="session")
def small() -> Callable[..., Run]:
    """`small("model.depth=2", ...)`: an MLM + MRM + ITM run of 16-pixel images, no data."""

    def make(*settings: str) -> Run:
        values = plain(vlp_easy())
        size = {"image_size": 16, "grid": 4, "width": 16, "depth": 1, "heads": 2, "stem": 4}
        values["model"] |= size | {"tokens": 12}
        return revise(values, list(settings), KINDS, source="small")

    return make


@pytest.fixture(scope="session")
def rows(text: Text) -> Callable[..., Batch]:
    """`rows(16, first=3)`: a batch of 16-pixel noise images and sentences, as `small` takes it."""

    def make(count: int, first: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(7 + first)
        shape = (count, 3, 16, 16)
        numbers = range(first, first + count)
        ids, real = text.encode([f"a picture with number {number}" for number in numbers])
        return Batch(
            keys=tuple(str(number) for number in numbers),
            draws_B=torch.tensor([row_key(0, 0, number) for number in numbers]),
            image_BCHW=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            tokens_BL=ids,
            real_BL=real,
            fields=tuple({"answer": "yes"} for _ in numbers),
        )

    return make


@pytest.fixture(scope="session")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDir]:
    """`keep(run, task, text, step)`: a run's folder with a checkpoint of the task's weights."""

    def make(run: Run, task: Task, text: Text, step: int = 3) -> RunDir:
        place = RunDir(storage.absolute(str(tmp_path_factory.mktemp("runs") / run.name)))
        place.create(run, {"data": "0" * 16})
        storage.write(place.at("tokenizer.json"), text.tokenizer.to_str().encode())
        named = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
        pieces = [(name, checkpoint.WEIGHT, 0, p.detach().view(-1)) for name, p in named]
        url = checkpoint.folder(place.url, step)
        checkpoint.commit(
            place.url,
            step,
            recipe=digest(run),
            base=checkpoint.base_digest(task),
            shapes={name: tuple(p.shape) for name, p in named},
            slices=put_slices(url, "attempt-1/rank-0.safetensors", pieces),
            extra={},
        )
        return place

    return make


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback; the URL of its one bucket."""
    with serve(tmp_path_factory.mktemp("weed"), "tests"):
        yield "s3://tests"


@pytest.fixture(scope="session")
def easy(bucket: str) -> str:
    """600 samples of easy-VQA in six shards of the bucket, indexed, with their tokenizer."""
    url = f"{bucket}/easy"
    samples = scattered(easyvqa.samples("test"))[:600]
    index.build(pack(samples, url, per_shard=100))
    texts = [text for _, members in samples for text in words(members)]
    storage.write(f"{url}/tokenizer.json", tokens.learn(texts, 300).encode())
    return url


@pytest.fixture(scope="session")
def ray_here(bucket: str) -> Iterator[None]:
    """A real Ray cluster of this machine alone, whose workers know the bucket."""
    with cluster(None, Shape(workers=2)):
        yield


@pytest.fixture(scope="session")
def tiny(easy: str) -> Callable[..., Run]:
    """`tiny("name", "steps=20", ...)`: a small MLM + MRM + ITM run on the bucket's samples."""

    def make(name: str, *settings: str) -> Run:
        values = plain(vlp_easy()) | {"name": name, "batch": 16, "steps": 30, "log_steps": 1}
        values |= {"checkpoint_steps": 5}
        values["data"] = {"train": easy, "test": easy, "tokenizer": f"{easy}/tokenizer.json"}
        values["optim"] |= {"warmup_steps": 5, "lr": 3e-3, "decay": "none"}
        values["model"] |= {"width": 32, "depth": 1, "heads": 2, "stem": 8}
        return revise(values, list(settings), KINDS, source=name)

    return make


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """`fault(what="nan", key=..., times=1)`: the hosts of this test give it to their ranks."""

    def make(*, what: str, key: str, times: int = 1) -> None:
        mark = tmp_path / "mark"
        mark.mkdir()
        found = rank_faults.spawner(what=what, key=key, times=times, mark=str(mark))
        monkeypatch.setattr(crew, "spawn", found)

    return make
