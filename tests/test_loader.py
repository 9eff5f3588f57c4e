import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.data import fetch, index, loader, storage
from diptych.data.batch import Batch
from diptych.data.blocks import Blocks
from diptych.data.buckets import Buckets
from diptych.data.index import Manifest
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import Sample, tar
from diptych.data.plan import Plan, Source
from diptych.data.tokens import Text
from diptych.errors import ReplacedError, ShardError, StaleIndexError, StorageError

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]

RECIPE = Recipe(text="txt", image_size=8, seed=3)
BATCH, STEPS = 6, 10  # three epochs of 20 samples


@pytest.fixture
def plan(samples: Samples, dataset: Dataset) -> Plan:
    shards = [samples(7), samples(5, first=7), samples(8, first=12)]
    return Plan(dataset(shards), RECIPE.seed, BATCH)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def same(a: Batch, b: Batch) -> bool:
    tensors = ("draws_B", "image_BCHW", "tokens_BL", "real_BL")
    equal = all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
    return equal and (a.keys, a.fields) == (b.keys, b.fields)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_batches_do_not_depend_on_the_world_size(plan: Plan, text: Text, world: int) -> None:
    alone = dict(Loader(plan, text, RECIPE, stop=STEPS))
    assert list(alone) == list(range(STEPS))
    rows = BATCH // world
    for rank in range(world):
        shared = Loader(plan, text, RECIPE, rank=rank, world=world, stop=STEPS, threads=1, ahead=1)
        for step, batch in shared:
            assert batch.rows == rows
            assert same(batch, alone[step].take(rank * rows, (rank + 1) * rows))


@pytest.mark.parametrize("start", [1, 4, 9, 10])
def test_a_resumed_loader_goes_on_as_if_nothing_had_happened(
    plan: Plan, text: Text, start: int
) -> None:
    whole = list(Loader(plan, text, RECIPE, stop=STEPS))
    resumed = list(Loader(plan, text, RECIPE, start=start, stop=STEPS))
    assert [step for step, _ in resumed] == list(range(start, STEPS))
    assert all(same(a, b) for (_, a), (_, b) in zip(whole[start:], resumed, strict=True))


def test_a_row_is_the_sample_that_its_key_names(plan: Plan, text: Text) -> None:
    visits = []
    for _, batch in Loader(plan, text, RECIPE, stop=STEPS):
        for row, key in enumerate(batch.keys):
            shard, _, number = key.partition("/")
            assert (
                text.decode(batch.tokens_BL[row].tolist()) == f"a picture with number {int(number)}"
            )
            assert batch.fields[row]["question"] == f"is it number {int(number)}?"
            assert batch.image_BCHW[row, :, 0, 0].tolist() == [
                int(number) * factor % 256 for factor in (37, 91, 53)
            ]
            assert shard == f"{0 if int(number) < 7 else 1 if int(number) < 12 else 2:05d}.tar"
            visits.append((key, int(batch.draws_B[row])))
    assert len({key for key, _ in visits}) == 20
    assert len(set(visits)) == len(visits) == 60, "each visit of a sample has its own numbers"


def test_a_field_can_be_the_text(plan: Plan, text: Text) -> None:
    recipe = Recipe(text="question", image_size=4, seed=3)
    _, batch = next(iter(Loader(plan, text, recipe, stop=1)))
    number = int(batch.keys[0].rpartition("/")[2])
    assert text.decode(batch.tokens_BL[0].tolist()) == f"is it number {number}?"
    assert batch.image_BCHW.shape == (BATCH, 3, 4, 4)


@pytest.mark.parametrize(
    ("setting", "members", "said"),
    [
        (
            "txt",
            {"png", "json"},
            r"00000\.tar: 000002: 'txt', .* missing\. It has: answer, question",
        ),
        (
            "caption",
            {"png", "txt", "json"},
            r"00000\.tar: 000002: 'caption', .* It has: txt, answer",
        ),
        ("txt", {"png"}, r"00000\.tar: 000002: 'txt', .* It has: no text at all"),
        ("txt", {"txt"}, r"00000\.tar: 000002 has no image"),
    ],
)
def test_a_sample_without_what_the_recipe_needs_is_an_error(
    setting: str, members: set[str], said: str, samples: Samples, dataset: Dataset, text: Text
) -> None:
    """It was empty text and a white image once, and nobody heard of it."""
    shard = samples(4)
    shard[2] = (shard[2][0], {name: shard[2][1][name] for name in members})
    fields = {"question": "?", "answer": "!", "caption": "a picture"}
    for place in (0, 1, 3):
        shard[place][1]["json"] = json.dumps(fields).encode()
    batches = iter(
        Loader(
            Plan(dataset([shard]), 0, 2, shuffle=False), text, replace(RECIPE, text=setting), stop=2
        )
    )
    assert next(batches)[0] == 0
    with pytest.raises(ShardError, match=said):
        next(batches)


@pytest.mark.parametrize("value", [None, ["a", "b"], {"en": "a"}])
def test_a_field_that_is_no_text_is_an_error(
    value: object, samples: Samples, dataset: Dataset, text: Text
) -> None:
    shard = samples(2)
    shard[1][1]["json"] = json.dumps({"question": value}).encode()
    plan = Plan(dataset([shard]), 0, 2, shuffle=False)
    with pytest.raises(
        ShardError, match=r"000001: 'question', which the recipe's data\.text names"
    ):
        list(Loader(plan, text, replace(RECIPE, text="question"), stop=1))


def test_a_recipe_that_needs_no_image_or_no_text_takes_samples_without(
    samples: Samples, dataset: Dataset, text: Text
) -> None:
    shard = [(key, {"txt": members["txt"]}) for key, members in samples(2)]
    plan = Plan(dataset([shard]), 0, 2)
    _, batch = next(iter(Loader(plan, text, replace(RECIPE, needs=frozenset({"text"})), stop=1)))
    assert bool((batch.image_BCHW == 255).all())
    shard = [(key, {"png": members["png"]}) for key, members in samples(2)]
    plan = Plan(dataset([shard], "images"), 0, 2)
    _, batch = next(iter(Loader(plan, text, replace(RECIPE, needs=frozenset({"image"})), stop=1)))
    assert not text.decode(batch.tokens_BL[0].tolist())


def test_an_empty_caption_is_a_caption(samples: Samples, dataset: Dataset, text: Text) -> None:
    """img2dataset writes an empty .txt where the web had none."""
    shard = samples(2)
    shard[0][1]["txt"] = b""
    assert len(list(Loader(Plan(dataset([shard]), 0, 2), text, RECIPE, stop=1))) == 1


def test_an_undecodable_sample_is_raised_where_it_is_needed(
    samples: Samples, dataset: Dataset, text: Text
) -> None:
    shard = samples(12)
    shard[8][1]["png"] = b"no image"
    plan = Plan(dataset([shard]), 0, 2, shuffle=False)
    batches = iter(Loader(plan, text, RECIPE, stop=6))
    assert [next(batches)[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ShardError, match=r"00000\.tar: 000008\.png cannot be decoded"):
        next(batches)


def test_a_shard_that_changed_is_an_error(samples: Samples, plan: Plan, text: Text) -> None:
    shard = plan.sources[0].manifest.shards[1]
    data = storage.read(shard.url)
    storage.write(shard.url, data.replace(b"a picture with number 9", b"a picture with number 7"))
    with pytest.raises(ReplacedError, match=r"00001\.tar was replaced since it was indexed"):
        list(Loader(plan, text, RECIPE, stop=STEPS))
    storage.write(shard.url, tar(samples(1)))
    with pytest.raises((ShardError, StorageError), match=r"00001\.tar"):
        list(Loader(plan, text, RECIPE, stop=STEPS))
    storage.delete(shard.url)
    with pytest.raises(StorageError, match=r"00001\.tar: not there"):
        list(Loader(plan, text, RECIPE, stop=STEPS))


def test_an_index_that_changed_is_an_error(plan: Plan, text: Text) -> None:
    storage.write(plan.sources[0].manifest.lines_url(plan.sources[0].manifest.shards[2]), b"")
    with pytest.raises(StaleIndexError, match=r"00002\.tar\.jsonl"):
        list(Loader(plan, text, RECIPE, stop=STEPS))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_dropping_the_iterator_leaves_no_thread(plan: Plan, text: Text, taken: int) -> None:
    before = set(threading.enumerate())
    batches = iter(Loader(plan, text, RECIPE, stop=1000))
    for _ in range(taken):
        next(batches)
    assert bool(set(threading.enumerate()) - before) == (taken > 0)
    del batches
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) == before


def test_once_is_every_sample_once_in_order(plan: Plan, text: Text) -> None:
    found = list(loader.once(plan.sources[0].manifest, text, RECIPE, batch=8))
    assert [batch.rows for batch in found] == [8, 8, 4]
    assert [int(key[-6:]) for batch in found for key in batch.keys] == list(range(20))
    some = list(loader.once(plan.sources[0].manifest, text, RECIPE, batch=8, limit=5))
    assert [int(key[-6:]) for batch in some for key in batch.keys] == list(range(5))


# --- shapes, sources, memory ---------------------------------------------------------------------


def photo(number: int, width: int, height: int, words: int) -> Sample:
    picture = io.BytesIO()
    Image.new("RGB", (width, height), (number % 256, 0, 0)).save(picture, "PNG")
    text = " ".join(["yes"] * words)
    return f"{number:06d}", {"png": picture.getvalue(), "txt": text.encode()}


def test_aspect_buckets_make_batches_of_one_shape(dataset: Dataset, text: Text) -> None:
    sizes = [(24, 16), (16, 24), (20, 20)]
    shards = [
        [photo(100 * s + n, *sizes[(n + s) % 3], words=1) for n in range(30)] for s in range(2)
    ]
    buckets = Buckets(sizes=((12, 8), (8, 12), (8, 8)))
    plan = Plan(dataset(shards), 3, 6, buckets=buckets)
    alone = dict(Loader(plan, text, RECIPE, stop=9))
    assert {tuple(batch.image_BCHW.shape) for batch in alone.values()} == {
        (6, 3, 8, 12),
        (6, 3, 12, 8),
        (6, 3, 8, 8),
    }
    for rank in range(3):
        for step, batch in Loader(plan, text, RECIPE, rank=rank, world=3, start=4, stop=9):
            assert same(batch, alone[step].take(rank * 2, rank * 2 + 2))
    assert [row["samples"] for row in plan.table()] == [20, 20, 20, 0]


def test_length_buckets_leave_out_the_padding(dataset: Dataset, text: Text) -> None:
    shard = [photo(n, 8, 8, words=1 if n % 2 else 9) for n in range(40)]
    plan = Plan(dataset([shard]), 3, 4, buckets=Buckets(lengths=(5,)))
    widths = {
        (plan.bucket(step), batch.tokens_BL.shape[1])
        for step, batch in Loader(plan, text, RECIPE, stop=9)
    }
    assert widths == {(0, 3), (1, 11)}, "[CLS] and [SEP] stand around 1 or 9 words"


def test_sources_are_told_apart_by_name(samples: Samples, dataset: Dataset, text: Text) -> None:
    one, two = dataset([samples(10)], "one"), dataset([samples(10)], "two")
    plan = Plan((Source(one, 3, "one"), Source(two, 1, "two")), 3, 8)
    keys = [key for _, batch in Loader(plan, text, RECIPE, stop=5) for key in batch.keys]
    assert Counter(key.partition("/")[0] for key in keys) == {"one": 30, "two": 10}
    draws = {
        (key, int(draw))
        for _, batch in Loader(plan, text, RECIPE, stop=5)
        for key, draw in zip(batch.keys, batch.draws_B, strict=True)
    }
    assert len(draws) == 40


@pytest.fixture
def heavy(dataset: Dataset) -> Manifest:
    """24 shards of 4 samples of about 1 MB: blocks of 8 MB, windows of 128 MB."""
    noise = random.Random(0).randbytes(1 << 20)
    shards = [
        [(f"{s:03d}{n:03d}", {"bin": noise, "txt": b"yes"}) for n in range(8)] for s in range(40)
    ]
    return dataset(shards, "heavy")


def test_what_is_fetched_before_the_first_batch_does_not_grow(
    heavy: Manifest, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resume at 1 %, 50 % and 99 % of an epoch, in an epoch far away, and at its edge."""
    recipe = replace(RECIPE, needs=frozenset({"text"}))
    fetched: list[int] = []
    real = fetch.span

    def count(url: str, start: int, end: int, **rest: Any) -> Any:
        fetched.append(end - start)
        return real(url, start, end, **rest)

    monkeypatch.setattr(fetch, "span", count)
    first = []
    for start in (0, 1, 40, 79, 80, 81, 8_000_001):
        fetched.clear()
        plan = Plan(heavy, 0, 4)
        next(iter(Loader(plan, text, recipe, start=start, stop=start + 1, memory=8 << 20)))
        first.append(sum(fetched))
    assert max(first) <= 1.1 * min(first)
    assert max(first) <= 4.1 * (1 << 20), "only the rows themselves, not the windows"


def test_memory_is_bounded(heavy: Manifest, text: Text) -> None:
    plan, held = Plan(heavy, 0, 4), list[int]()
    with ThreadPoolExecutor(2) as pool:
        blocks = Blocks(plan, pool, limit=64 << 20)
        for step in range(160):
            refs = plan.rows(step, 0, 1)
            blocks.want(refs)
            for ref in refs:
                blocks.raw(ref)
            blocks.forget(refs)
            held.append(blocks.held)
    assert (90 << 20) < max(held) <= 2 * (128 << 20), "a window, and what a step shares with two"


@pytest.mark.parametrize("apart", [True, False])
def test_blocks_far_larger_than_most_are_not_held(
    apart: bool, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of large samples among small ones, or one shard of both: no block is read whole that
    the mean of its source does not tell of, and what is held is what there is."""
    large = [(f"a{n:05d}", {"txt": b"x" * 100_000}) for n in range(60)]
    small = [(f"b{n:05d}", {"txt": b"y"}) for n in range(900)]
    source = dataset([large, small] if apart else [large + small])
    plan, fetched, held = Plan(source, 0, 8), list[int](), list[int]()
    real = fetch.span

    def count(url: str, start: int, end: int, **rest: Any) -> Any:
        fetched.append(end - start)
        return real(url, start, end, **rest)

    monkeypatch.setattr(fetch, "span", count)
    monkeypatch.setattr("diptych.data.blocks._LARGE", 1 << 20)
    lines = index.open_lines(source, source.shards[0])
    seen: set[str] = set()
    with ThreadPoolExecutor(2) as pool:
        blocks = Blocks(plan, pool)
        for step in range(120):
            refs = plan.step(step)
            blocks.want(refs)
            for ref in refs:
                raw = blocks.raw(ref)
                seen.add(raw.record.key)
                assert len(raw.blobs["txt"]) == (100_000 if raw.record.key[0] == "a" else 1)
                assert apart or raw.record == lines.entry(ref.position).record
            blocks.forget(refs)
            held.append(blocks.held)
    assert len(seen) == 960
    assert max(fetched) <= 1 << 20 and sum(fetched) < 1.5 * sum(s.bytes for s in source.shards)
    assert max(held) <= 1 << 20
