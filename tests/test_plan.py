from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.index import Manifest, Shard
from diptych.data.plan import Plan, Ref
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


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of every shape: one window and many, blocks of many samples and of one."""
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
    heavy = draw(st.sampled_from([1, MEGABYTE, 8 * MEGABYTE, 64 * MEGABYTE]))
    batch = draw(st.integers(1, sum(counts)))
    seed = draw(st.integers(0, 2**40))
    return Plan(manifest(counts, heavy), seed, batch, shuffle=draw(st.booleans()))


def visits(plan: Plan, steps: int) -> list[Ref]:
    return [ref for step in range(steps) for ref in plan.step(step)]


@given(plans())
def test_an_epoch_is_every_sample_exactly_once(plan: Plan) -> None:
    epochs = 3
    total = plan.manifest.samples
    seen = visits(plan, -(-epochs * total // plan.batch))
    everything = {
        (number, position): 1
        for number, shard in enumerate(plan.manifest.shards)
        for position in range(shard.samples)
    }
    for epoch in range(epochs):
        places = Counter((ref.shard, ref.position) for ref in seen if ref.epoch == epoch)
        assert places == everything
    for ref in seen:
        block = plan.blocks[ref.block]
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
    other = Plan(plan.manifest, plan.seed, plan.batch, plan.shuffle)
    assert {step: other.step(step) for step in reversed(steps)} == asked


def order(plan: Plan, epoch: int) -> list[tuple[int, int]]:
    """(shard, position) of an epoch's visits, for a plan of one row a step."""
    total = plan.manifest.samples
    return [plan.step(step)[0][3:] for step in range(epoch * total, (epoch + 1) * total)]


def test_epochs_and_seeds_differ_and_shuffle() -> None:
    small = manifest([50])
    first = order(Plan(small, 0, 1), 0)
    others = [order(Plan(small, 0, 1), 1), order(Plan(small, 1, 1), 0), sorted(first)]
    assert all(other != first for other in others)
    assert order(Plan(small, 0, 1), 0) == first
    many = Plan(manifest([100], 8 * MEGABYTE), 0, 1)
    first_windows = [{many.step(100 * epoch + n)[0].block for n in range(32)} for epoch in (0, 1)]
    assert len(many.blocks) == 100
    assert first_windows[0] != first_windows[1]


def test_without_shuffle_the_order_is_that_of_the_shards() -> None:
    found = order(Plan(manifest([3, 0, 2]), 0, 1, shuffle=False), 1)
    assert found == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]


def test_a_window_reads_few_blocks_and_each_only_once_an_epoch() -> None:
    plan = Plan(manifest([100] * 10, 4 * MEGABYTE), 0, 10)
    assert {block.samples for block in plan.blocks} == {2}
    seen = visits(plan, 100)
    windows = {ref.block: ref.window for ref in seen}
    assert all(windows[ref.block] == ref.window for ref in seen)
    assert set(Counter(windows.values()).values()) <= {plan.window_blocks, 500 % plan.window_blocks}
    assert plan.window_blocks * 8 * MEGABYTE == 256 * MEGABYTE


def test_too_few_samples_are_an_error_that_gives_both_numbers() -> None:
    with pytest.raises(DataError, match="5 samples cannot fill a batch of 6"):
        Plan(manifest([3, 2]), 0, 6)
    with pytest.raises(DataError, match="0 samples"):
        Plan(manifest([0]), 0, 1)


def test_a_world_that_does_not_divide_the_batch_is_an_error() -> None:
    with pytest.raises(DataError, match="6 rows cannot be cut into 4 equal parts"):
        Plan(manifest([30]), 0, 6).rows(0, 0, 4)


def test_many_shards_cost_nothing_at_a_step() -> None:
    plan = Plan(manifest([1000] * 2000), 0, 512)
    plan.step(0)
    assert plan.steps_per_epoch == 2_000_000 / 512
    assert len({ref.block for ref in plan.step(3000)}) <= 2 * plan.window_blocks
