import gzip
import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diptych.data import order, storage
from diptych.data.buckets import Buckets
from diptych.data.index import Manifest, Shard, open_lines
from diptych.data.plan import Plan, Ref, Source
from diptych.errors import DataError

MEGABYTE = 1 << 20


def manifest(counts: Sequence[int], sample_bytes: int = 1000) -> Manifest:
    return Manifest(
        "file:///nowhere/index",
        tuple(
            Shard(f"file:///nowhere/{i}.tar", count * sample_bytes, "etag", count, "lines")
            for i, count in enumerate(counts)
        ),
    )


@contextmanager
def grouped(blocks: int) -> Iterator[None]:
    """Orders made here have groups of so many blocks, as only huge sources have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "GROUP_BLOCKS", blocks)
        yield


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of every shape: one window and many, blocks of many samples and of one."""
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
    heavy = draw(st.sampled_from([1, MEGABYTE, 8 * MEGABYTE, 64 * MEGABYTE]))
    batch = draw(st.integers(1, sum(counts)))
    seed = draw(st.integers(0, 2**40))
    with grouped(draw(st.sampled_from([order.GROUP_BLOCKS, 3]))):
        return Plan(manifest(counts, heavy), seed, batch, shuffle=draw(st.booleans()))


def visits(plan: Plan, steps: int) -> list[Ref]:
    return [ref for step in range(steps) for ref in plan.step(step)]


def visits_by_step(plan: Plan, steps: int) -> list[list[Ref]]:
    return [plan.step(step) for step in range(steps)]


@given(plans())
def test_an_epoch_is_every_sample_exactly_once(plan: Plan) -> None:
    epochs, shards = 3, plan.sources[0].manifest.shards
    seen = visits(plan, -(-epochs * plan.samples // plan.batch))
    everything = {
        (number, position): 1
        for number, shard in enumerate(shards)
        for position in range(shard.samples)
    }
    for epoch in range(epochs):
        found = Counter((ref.shard, ref.position) for ref in seen if ref.epoch == epoch)
        assert found == everything
    for ref in seen:
        block = plan.orders[0].block(ref.block)
        assert block.shard == ref.shard
        assert ref.position - block.first in range(block.samples)


@given(plans(), st.integers(0, 50))
def test_the_slices_of_any_world_make_the_global_batch(plan: Plan, step: int) -> None:
    whole = plan.step(step)
    assert len(whole) == plan.batch
    for world in (world for world in range(1, min(9, plan.batch + 1)) if plan.batch % world == 0):
        slices = [plan.rows(step, rank, world) for rank in range(world)]
        assert {len(rows) for rows in slices} == {plan.batch // world}
        assert [ref for rows in slices for ref in rows] == whole


@given(plans(), st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_a_step_is_the_same_whatever_was_asked_before(plan: Plan, steps: list[int]) -> None:
    asked = {step: plan.step(step) for step in steps}
    with grouped(order.GROUP_BLOCKS if plan.orders[0].groups == 1 else 3):
        other = Plan(plan.sources, plan.seed, plan.batch, shuffle=plan.shuffle)
    assert {step: other.step(step) for step in reversed(steps)} == asked


def places(plan: Plan, epoch: int) -> list[tuple[int, int]]:
    """(shard, position) of an epoch's visits, for a plan of one row a step."""
    steps = range(epoch * plan.samples, (epoch + 1) * plan.samples)
    return [plan.step(step)[0][4:] for step in steps]


def test_epochs_and_seeds_differ_and_shuffle() -> None:
    small = manifest([50])
    first = places(Plan(small, 0, 1), 0)
    others = [places(Plan(small, 0, 1), 1), places(Plan(small, 1, 1), 0), sorted(first)]
    assert all(other != first for other in others)
    assert places(Plan(small, 0, 1), 0) == first
    many = Plan(manifest([100], 8 * MEGABYTE), 0, 1)
    first_windows = [{many.step(100 * epoch + n)[0].block for n in range(16)} for epoch in (0, 1)]
    assert many.orders[0].blocks == 100
    assert first_windows[0] != first_windows[1]


def test_without_shuffle_the_order_is_that_of_the_shards() -> None:
    found = places(Plan(manifest([3, 0, 2]), 0, 1, shuffle=False), 1)
    assert found == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]


def test_a_window_reads_few_blocks_and_each_only_once_an_epoch() -> None:
    plan = Plan(manifest([100] * 10, 4 * MEGABYTE), 0, 10)
    assert {plan.orders[0].block(number).samples for number in range(500)} == {2}
    seen, window_blocks = visits(plan, 100), plan.orders[0].window_blocks
    windows = {ref.block: ref.window for ref in seen}
    assert all(windows[ref.block] == ref.window for ref in seen)
    assert set(Counter(windows.values()).values()) <= {window_blocks, 500 % window_blocks}
    assert window_blocks * 8 * MEGABYTE == 128 * MEGABYTE


def test_too_few_samples_are_an_error_that_gives_both_numbers() -> None:
    with pytest.raises(DataError, match="5 samples cannot fill a batch of 6"):
        Plan(manifest([3, 2]), 0, 6)
    with pytest.raises(DataError, match="0 samples"):
        Plan(manifest([0]), 0, 1)
    with pytest.raises(DataError, match="no source"):
        Plan((), 0, 1)


def test_a_small_source_of_a_mix_fills_its_own_rows_alone() -> None:
    large, small = manifest([600]), manifest([7])
    plan = Plan([Source(large, 15, "large"), Source(small, 1, "small")], 0, 100)
    for step in range(20):
        mine = [ref for ref in plan.step(step) if ref.source == 1]
        assert len(mine) in (6, 7)
    with pytest.raises(DataError, match=r"7 samples cannot fill its 13 rows of .* its weight"):
        Plan([Source(large, 7, "large"), Source(small, 1, "small")], 0, 100)


def test_a_world_that_does_not_divide_the_batch_is_an_error() -> None:
    with pytest.raises(DataError, match="6 rows cannot be cut into 4 equal parts"):
        Plan(manifest([30]), 0, 6).rows(0, 0, 4)


def test_many_shards_cost_nothing_at_a_step() -> None:
    plan = Plan(manifest([1000] * 2000), 0, 512)
    plan.step(0)
    assert plan.steps_per_epoch == 2_000_000 / 512
    assert len({ref.block for ref in plan.step(3000)}) <= 2 * plan.orders[0].window_blocks


@pytest.mark.parametrize("counts", [[1000] + [1] * 50, [5, 3], [17]])
def test_every_rank_takes_as_many_steps_whatever_the_shards(counts: list[int]) -> None:
    """One giant shard and many tiny ones; fewer shards than ranks."""
    plan = Plan(manifest(counts), 0, 8)
    steps = 3 * -(-sum(counts) // 8)
    for rank in range(8):
        assert [len(plan.rows(step, rank, 8)) for step in range(steps)] == [1] * steps


# --- several sources, buckets, restarts ----------------------------------------------------------

SIZES = ((64, 64), (96, 64), (64, 96))


@st.composite
def mixed(draw: st.DrawFn) -> Callable[[], Plan]:
    """Makes the same plan anew each time: random shards, weights and buckets, images and all."""
    seed = draw(st.integers(0, 2**40))
    chosen = draw(st.sampled_from([1, 2, 3]))
    shards = [draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)) for _ in range(chosen)]
    weights = [draw(st.floats(0.05, 1)) for _ in range(chosen)]
    heavy = draw(st.sampled_from([1, MEGABYTE, 8 * MEGABYTE]))
    sizes = draw(st.sampled_from([(), SIZES[:2], SIZES]))
    buckets = Buckets(sizes=sizes, lengths=draw(st.sampled_from([(), (10,)])))
    rng = random.Random(seed)
    folder = tempfile.mkdtemp()
    sources = tuple(
        Source(indexed(f"{folder}/{n}", counts, heavy, rng), weight, f"source{n}")
        for n, (counts, weight) in enumerate(zip(shards, weights, strict=True))
    )
    batch = draw(st.sampled_from([24, 48, 72]))
    assume(all(kept(source, buckets) >= batch for source in sources))
    groups = draw(st.sampled_from([order.GROUP_BLOCKS, 3]))

    def make() -> Plan:
        with grouped(groups):
            return Plan(sources, seed, batch, buckets=buckets)

    return make


PICTURES = ((64, 64), (90, 60), (60, 90), (120, 50), (8, 8))


def indexed(
    folder: str,
    counts: list[int],
    sample_bytes: int,
    rng: random.Random,
    sizes: Sequence[tuple[int, int]] = PICTURES,
) -> Manifest:
    """A dataset that has an index and no tars: the plan never reads those."""
    shards = []
    for number, count in enumerate(counts):
        lines = b""
        for place in range(count):
            width, height = rng.choice(sizes)
            row = {"key": f"{place:03d}", "members": {"jpg": [place * 100, 100, 0]}}
            row |= {"text": rng.randrange(20), "width": width, "height": height}
            lines += json.dumps(row).encode() + b"\n"
        url = f"file://{folder}/{number}.tar"
        storage.write(f"{folder}/index/{number}.tar.jsonl.gz", gzip.compress(lines, mtime=0))
        digest = hashlib.sha256(lines).hexdigest()
        shards.append(Shard(url, count * sample_bytes, "etag", count, digest))
    return Manifest(f"file://{folder}/index", tuple(shards))


def assigned(source: Source, buckets: Buckets) -> list[np.ndarray]:
    """Bucket of each sample of each shard."""
    lines = [open_lines(source.manifest, shard) for shard in source.manifest.shards]
    return [buckets.assign(found.shapes(0, len(found))) for found in lines]


def kept(source: Source, buckets: Buckets) -> int:
    return sum(int((found >= 0).sum()) for found in assigned(source, buckets))


def labels(plan: Plan) -> dict[tuple[int, int, int], int]:
    """Bucket of each (source, shard, position)."""
    return {
        (number, shard, position): int(bucket)
        for number, source in enumerate(plan.sources)
        for shard, found in enumerate(assigned(source, plan.buckets))
        for position, bucket in enumerate(found)
    }


@settings(max_examples=25)
@given(mixed())
def test_every_visit_comes_once_and_only_leftovers_wait(make: Callable[[], Plan]) -> None:
    plan, steps = make(), 40
    seen = Counter(visits(plan, steps))
    assert set(seen.values()) == {1}
    state = plan.state(steps)["sources"]
    waiting = 0
    fits = {place for place, bucket in labels(plan).items() if bucket >= 0}
    for number, at in enumerate(state):
        everything = {place[1:] for place in fits if place[0] == number}
        for epoch in range(at["epoch"] + 1):
            mine = {r[4:] for r in seen if (r.source, r.epoch) == (number, epoch)}
            assert mine <= everything
            waiting += len(everything - mine) if epoch < at["epoch"] else 0
    assert waiting < plan.buckets.count * plan.batch, "less than a batch of each bucket waits"


@settings(max_examples=25)
@given(mixed())
def test_a_batch_is_of_one_bucket_and_sources_have_their_shares(make: Callable[[], Plan]) -> None:
    plan, steps = make(), 40
    rows, buckets = Counter[int](), labels(plan)
    for step in range(steps):
        refs = plan.step(step)
        rows.update(ref.source for ref in refs)
        if plan.buckets.count > 1:
            found = {buckets[ref.source, ref.shard, ref.position] for ref in refs}
            assert found == {plan.bucket(step)}
    if plan.buckets.count == 1 and not plan.buckets.sizes:
        share = plan.mix.slots / plan.mix.slots.sum()
        for source, wanted in enumerate(share):
            assert abs(rows[source] - wanted * steps * plan.batch) <= len(share)


@settings(max_examples=10)
@given(mixed(), st.data())
def test_any_restarts_on_any_worlds_see_the_same_batches(
    make: Callable[[], Plan], data: st.DataObject
) -> None:
    """4 -> 2 -> 3 -> 8 workers and the like, killed anywhere, each with a plan of its own."""
    steps = 20
    calm = visits_by_step(make(), steps)
    plan, seen, step = make(), list[list[Ref]](), 0
    while step < steps:
        world = data.draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
        until = data.draw(st.integers(step + 1, steps))
        plan = make()
        slices = [[plan.rows(n, rank, world) for n in range(step, until)] for rank in range(world)]
        seen += [[ref for rows in group for ref in rows] for group in zip(*slices, strict=True)]
        step = until
    assert seen == calm


@settings(max_examples=8)
@given(mixed(), st.lists(st.integers(0, 600), min_size=1, max_size=6))
def test_far_steps_are_found_without_the_walk(make: Callable[[], Plan], steps: list[int]) -> None:
    plan, walked = make(), make()
    asked = {step: (plan.bucket(step), plan.step(step), plan.state(step)) for step in steps}
    for step in range(max(steps) + 1):
        found = (walked.bucket(step), walked.step(step), walked.state(step))
        assert step not in asked or asked[step] == found


def test_buckets_walk_as_the_definition_says() -> None:
    """Against the walk itself: each row joins its queue, a full queue is the next step."""
    rng = random.Random(5)
    source = Source(indexed(tempfile.mkdtemp(), [300, 200, 500], MEGABYTE, rng))
    plan = Plan((source,), 3, 32, buckets=Buckets(sizes=SIZES))
    known = labels(plan)
    queues: dict[int, list[Ref]] = {}
    steps: list[tuple[int, list[Ref]]] = []
    for row in plan.orders[0].visits(np.arange(5000)).tolist():
        ref = Ref(0, *row)
        bucket = known[0, ref.shard, ref.position]
        if bucket < 0:
            continue
        queue = queues.setdefault(bucket, [])
        queue.append(ref)
        if len(queue) == plan.batch:
            ordered = sorted(queue, key=lambda r: (r.epoch, r.shard, r.position))
            steps.append((bucket, ordered))
            queues[bucket] = []
    assert len(steps) > 100
    assert [(plan.bucket(n), plan.step(n)) for n in range(len(steps))] == steps


def test_what_a_plan_means_is_in_its_digest() -> None:
    rng = random.Random(0)
    one, two = (Source(indexed(tempfile.mkdtemp(), [40, 60], 1000, rng)) for _ in range(2))
    base = Plan((one, two), 0, 20)
    others = [
        Plan((one, two), 1, 20),
        Plan((one, two), 0, 10),
        Plan((two, one), 0, 20),
        Plan((one,), 0, 20),
        Plan((one._replace(weight=3), two), 0, 20),
        Plan((one, two), 0, 20, buckets=Buckets(sizes=((32, 32),))),
    ]
    assert len({plan.digest for plan in [base, *others]}) == 7
    assert Plan((one, two), 0, 20).digest == base.digest
    assert base.state(7) == {
        "plan": base.digest,
        "step": 7,
        "sources": [{"epoch": 0, "position": 70}, {"epoch": 0, "position": 70}],
    }


def test_images_go_to_the_nearest_aspect_and_tiny_ones_nowhere() -> None:
    buckets = Buckets(sizes=((64, 64), (128, 128), (96, 64)), lengths=(5, 20))
    assert buckets.count == 9

    def bucket(width: int, height: int, chars: int = 0) -> int:
        return int(buckets.assign(np.array([[width], [height], [chars]]))[0])

    def crop(width: int, height: int) -> float:
        shapes = np.array([[width], [height], [0]])
        return float(buckets.crops(buckets.assign(shapes), shapes)[0])

    names = {(200, 200): "128x128", (70, 70): "64x64", (150, 100): "96x64", (1000, 500): "96x64"}
    for (width, height), name in names.items():
        assert buckets.name(bucket(width, height, 5)) == f"{name}, <= 5 chars"
    assert buckets.name(bucket(200, 200, 21)) == "128x128, longer"
    assert bucket(20, 20) == bucket(0, 0) == -1
    assert crop(192, 128) == pytest.approx(0)
    assert crop(1280, 640) == pytest.approx(0.25)
    assert Buckets(lengths=(5,)).assign(np.array([[0], [0], [9]])).tolist() == [1]
    for wrong in ({"sizes": [[0, 5]]}, {"lengths": [5, 5]}, {"enlarge": 0.5}):
        with pytest.raises(ValidationError):
            Buckets.model_validate(wrong)


def test_dropping_leaves_too_few_is_an_error() -> None:
    source = Source(indexed(tempfile.mkdtemp(), [30], 1000, random.Random(1)))
    with pytest.raises(DataError, match="samples that fit a bucket cannot fill a batch of 30"):
        Plan((source,), 0, 30, buckets=Buckets(sizes=((64, 64),)))


@pytest.mark.parametrize("weights", [(9, 1), (1, 1), (1, 9)])
def test_an_epoch_of_a_mix_is_over_when_each_source_was_seen(
    weights: tuple[int, int], tmp_path: Path
) -> None:
    """Of one source all is kept, of the other a tenth: each counts by its share of the rows."""
    draw, sizes = random.Random(2), [(64, 64)] + [(8, 8)] * 9
    whole = indexed(str(tmp_path / "whole"), [400], 1000, draw, [(64, 64)])
    rest = indexed(str(tmp_path / "rest"), [400], 1000, draw, sizes)
    sources = [Source(whole, weights[0], "whole"), Source(rest, weights[1], "rest")]
    plan = Plan(sources, 0, 10, buckets=Buckets(sizes=((64, 64),)))
    unseen, step = {place for place, bucket in labels(plan).items() if bucket >= 0}, 0
    while unseen:
        unseen -= {(ref.source, ref.shard, ref.position) for ref in plan.step(step)}
        step += 1
    assert plan.steps_per_epoch == pytest.approx(step, rel=0.03)
    alone = Plan(sources[1:], 0, 10, buckets=plan.buckets)
    assert alone.steps_per_epoch == kept(sources[1], plan.buckets) / 10


def test_a_huge_source_costs_what_its_groups_cost() -> None:
    """2 * 10^8 samples: the rows of any step are found among the blocks of a group or two."""
    plan = Plan(manifest([10_000] * 20_000, 42_000), 0, 1024)
    one = plan.orders[0]
    assert one.blocks > 10 * order.GROUP_BLOCKS
    for step in (0, 10, plan.samples // 1024 // 2, 3 * plan.samples // 1024):
        refs = plan.step(step)
        assert len(set(refs)) == 1024
        shards = {ref.shard for ref in refs}
        assert len({shard // 2000 for shard in shards}) > 4, "blocks come from all over the source"
    made = one.group_blocks.cache_info().misses
    assert made <= 8, "a step looks at one group, at two where it crosses an edge"
