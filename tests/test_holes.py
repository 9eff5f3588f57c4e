"""Samples that are left out, on record."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.cluster import ledger
from diptych.cluster.checkpoint import Snapshot, Writer
from diptych.cluster.journal import Journal, Page
from diptych.data import fetch, index, storage
from diptych.data.holes import Budget, Hole, Holes, quarantine, quarantined, split
from diptych.data.index import Manifest
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import Sample, tar
from diptych.data.plan import Plan, Ref, Source
from diptych.data.tokens import Text
from diptych.errors import DataError, ShardError
from diptych.finetune import gallery, ngram_table
from diptych.finetune.decode import greedy
from diptych.finetune.score import Finished, majority
from diptych.finetune.vocabulary import records
from diptych.pretrain.checkpoint import steps
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]
RECIPE = Recipe(text="txt", image_size=8, seed=3)


@pytest.fixture
def broken(samples: Samples, dataset: Dataset) -> Manifest:
    """60 samples in three shards; 5 and 45 are no images."""
    shards = [samples(20), samples(20, first=20), samples(20, first=40)]
    shards[0][5][1]["png"] = b"no image"
    shards[2][5][1]["png"] = b"no image"
    return dataset(shards)


def test_damage_within_the_budget_leaves_a_hole_on_record(broken: Manifest, text: Text) -> None:
    plan = Plan(broken, 0, 12)
    whole = Budget(shard=0.05, source=0.04)
    for world in (1, 2, 3):
        held = [Holes(plan, whole) for _ in range(world)]
        rows: dict[str, bool] = {}
        for rank, holes in enumerate(held):
            loader = Loader(plan, text, RECIPE, rank=rank, world=world, stop=5, holes=holes)
            for _, batch in loader:
                assert batch.rows == 12 // world
                left = [False] * batch.rows if batch.hole_B is None else batch.hole_B.tolist()
                rows |= dict(zip(batch.keys, left, strict=True))
        assert len(rows) == 60
        assert {key for key, hole in rows.items() if hole} == {
            "00000.tar/000005",
            "00002.tar/000045",
        }
        found = sorted(hole for holes in held for hole in holes.turn())
        assert [(hole.shard, hole.key) for hole in found] == [
            ("00000.tar", "000005"),
            ("00002.tar", "000045"),
        ]
        lines = index.open_lines(broken, broken.shards[0])
        assert found[0].offset == lines.entry(5).record.span()[0]
        assert "000005.png cannot be decoded" in found[0].reason


def test_a_passed_budget_stops_with_a_report(broken: Manifest, text: Text) -> None:
    plan = Plan(broken, 0, 12)
    with pytest.raises(
        DataError, match=r"set/index: 2 damaged samples, 1 are allowed.*data\.faults"
    ):
        list(Loader(plan, text, RECIPE, stop=5, holes=Holes(plan, Budget(source=0.02))))
    known = [Hole("00000.tar", "000009", 0, "earlier")]
    with pytest.raises(DataError, match=r"00000\.tar: 2 damaged samples, 1 are allowed"):
        holes = Holes(plan, Budget(shard=0.05, source=1), known)
        list(Loader(plan, text, RECIPE, stop=5, holes=holes))
    with pytest.raises(ShardError, match="cannot be decoded"):
        list(Loader(plan, text, RECIPE, stop=5))


def test_holes_of_earlier_attempts_are_held_against_the_budget_at_once(broken: Manifest) -> None:
    plan = Plan([Source(broken, 1.0, "set")], 0, 12)
    known = [Hole("set/00000.tar", f"{n:06d}", 0, "earlier") for n in range(2)]
    with pytest.raises(DataError, match=r"set/00000\.tar: 2 damaged samples, 1 are allowed"):
        Holes(plan, Budget(shard=0.05, source=1), known)
    with pytest.raises(DataError, match=r"set/index: 2 damaged samples, 1 are allowed"):
        Holes(plan, Budget(shard=1, source=0.02), known)
    Holes(plan, Budget(shard=0.1, source=0.04), known)


@pytest.mark.parametrize("allowed", [1, 2])
def test_the_budget_is_that_of_all_ranks_together(
    allowed: int, broken: Manifest, text: Text, tmp_path: Path
) -> None:
    """Each meets one; no checkpoint is made of more than both may. Told twice, it counts once."""
    plan, run = Plan(broken, 0, 12), str(tmp_path / "run")
    attempt = ledger.begin(RunDir(run), 0, 2)
    budget = Budget(shard=1, source=allowed / 60)
    writers = [
        Writer(
            run=run, recipe="r", rank=rank, world=2, attempt=attempt, keep=9,
            journal=Journal(rank), stream=plan.state, timeout_s=2,
        )
        for rank in range(2)
    ]  # fmt: skip
    for writer, mine in zip(writers, ((0,), (0, 2)) if allowed == 2 else ((0,), (2,)), strict=True):
        writer.journal.holes = holes = Holes(plan, budget)
        for shard in mine:
            key = f"{shard * 20 + 5:06d}"
            holes.admit(Ref(0, 0, 0, 0, shard, 5), key, 0, ShardError(f"{key} is damaged"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda writer: writer.write(empty(5, writer.journal.turn())), writers))
    if allowed == 2:
        assert writers[0].fault is writers[1].fault is None
        assert steps(run) == [5]
        return
    assert steps(run) == []
    with pytest.raises(DataError, match=r"2 damaged samples, 1 are allowed.*000045 is damaged"):
        writers[0].raise_fault()


def empty(step: int, page: Page) -> Snapshot:
    nothing: dict[str, Any] = {"live": [], "pieces": [], "shapes": {}, "base": None, "ready": None}
    return Snapshot(step=step, optimiser_step=0.0, page=page, **nothing)


def test_a_quarantined_sample_is_left_out_and_all_else_stays(broken: Manifest, text: Text) -> None:
    plan, allow = Plan(broken, 0, 12), Budget(shard=1, source=1)
    before = dict(Loader(plan, text, RECIPE, stop=5, holes=Holes(plan, allow)))
    hole = quarantine(broken, "00001.tar", "000033", "loss spike")
    quarantine(broken, "00001.tar", "000034", "")
    assert quarantined(broken)[0] == hole
    after = dict(Loader(plan, text, RECIPE, stop=5, holes=Holes(plan, allow)))
    for step, batch in after.items():
        assert batch.keys == before[step].keys
        for row, key in enumerate(batch.keys):
            same = torch.equal(batch.image_BCHW[row], before[step].image_BCHW[row])
            if key in ("00001.tar/000033", "00001.tar/000034"):
                assert not same
                assert batch.hole_B is not None and batch.hole_B[row]
                assert batch.fields[row] == {}
            else:
                assert same and torch.equal(batch.tokens_BL[row], before[step].tokens_BL[row])
    with pytest.raises(DataError, match="in quarantine already"):
        quarantine(broken, "00001.tar", "000033", "again")
    with pytest.raises(DataError, match="no sample 'nobody'"):
        quarantine(broken, "00001.tar", "nobody", "x")
    with pytest.raises(DataError, match=r"no shard '00009\.tar'"):
        quarantine(broken, "00009.tar", "000033", "x")
    storage.write(f"{broken.url}/quarantine.jsonl", json.dumps({"shard": "x"}).encode())
    with pytest.raises(DataError, match="is not a quarantine"):
        Holes(plan)


def test_bytes_damaged_on_their_way_are_read_again(
    samples: Samples, dataset: Dataset, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit that TCP let through: cannot be caused for real on loopback."""
    plan = Plan(dataset([samples(24)]), 0, 12)
    clean = dict(Loader(plan, text, RECIPE, stop=2))
    real, flipped = fetch.span, list[str]()

    def flip_once(url: str, start: int, end: int, **rest: object) -> object:
        data = bytearray(real(url, start, end, **rest))  # type: ignore[arg-type]
        if not flipped:
            flipped.append(url)
            data[700] ^= 1
        return memoryview(data)

    monkeypatch.setattr(fetch, "span", flip_once)
    again = dict(Loader(plan, text, RECIPE, stop=2))
    assert flipped
    for step, batch in clean.items():
        assert torch.equal(again[step].image_BCHW, batch.image_BCHW)
        assert torch.equal(again[step].tokens_BL, batch.tokens_BL)
        assert again[step].hole_B is None


def test_a_sample_is_named_by_its_shard_whatever_that_is_called(tmp_path: Path) -> None:
    urls = [str(tmp_path / name) for name in ("a.TAR", "b", "c.tar.old")]
    for url in urls:
        storage.write(url, tar([("x", {"txt": b"x"})]))
    manifest = index.build(urls)
    for sample, found in {
        "a.TAR/x/y": ("a.TAR", "x/y"),
        "b/c.tar.old/z": ("b", "c.tar.old/z"),
        "photos/c.tar.old/a.tar/z": ("c.tar.old", "a.tar/z"),
    }.items():
        assert split(manifest, sample) == found
    for sample in ("b", "00000.tar/z", "/z"):
        with pytest.raises(DataError, match=r"names no shard of .*such as a\.TAR/KEY"):
            split(manifest, sample)


def test_what_reads_a_dataset_whole_passes_by_its_quarantine(
    samples: Samples, dataset: Dataset, small: Callable[..., Run], text: Text
) -> None:
    shard = samples(6)
    shard[2] = ("000002", {"png": shard[2][1]["png"], "json": b"no record"})  # and no caption
    manifest = dataset([shard])
    quarantine(manifest, "00000.tar", "000002", "no caption")
    run = small("objectives=[{kind: prefix}]")
    nowhere: Any = None  # no folder and no checkpoint
    found = Finished(nowhere, run, text, nowhere, "raw", run.task(text).eval(), manifest.url)
    assert [batch.rows for batch in found.batches()] == [5]
    assert len(gallery.captioned(found, greedy)) == len(ngram_table.captions(manifest)) == 5
    assert list(records(manifest)) == [json.loads(m["json"]) for k, m in shard if k != "000002"]
    assert majority(found) == 1


@pytest.mark.parametrize("numbers", [range(5), range(7), [0, 1, 2, 9, 4, 5]])
def test_what_reads_a_dataset_whole_reads_what_was_indexed(
    numbers: Sequence[int], samples: Samples, dataset: Dataset
) -> None:
    manifest = dataset([samples(6)])
    assert len(ngram_table.captions(manifest)) == 6
    storage.write(manifest.shards[0].url, tar([samples(1, first=number)[0] for number in numbers]))
    with pytest.raises(ShardError, match=r"0000\d\d is not what was indexed"):
        ngram_table.captions(manifest)
