"""Diptych's loader from the bucket (or from this disk), with two decoding threads."""

from concurrent.futures import ThreadPoolExecutor

from diptych.data import index, storage, tokens
from diptych.data.loader import Blocks, Loader, Recipe
from diptych.data.plan import Plan

from ..arm import BATCH, WORKERS, Batches, Job, run, unchecked


def batches(job: Job) -> Batches:
    """Pixels from the loader as training uses it, or bytes from its blocks."""
    manifest = index.open_manifest(job.remote)
    plan = Plan(manifest, 0, BATCH)
    steps = range(job.first // BATCH, manifest.samples // BATCH)
    if job.pixels == "fetch":
        yield from _blocks(plan)
    else:
        yield from (_bytes(plan, steps) if job.raw else _pixels(job, plan, steps))


def _pixels(job: Job, plan: Plan, steps: range) -> Batches:
    text = tokens.load(storage.join(job.remote, "tokenizer.json"), 64)
    recipe = Recipe(text="txt", image_size=job.size, seed=0)
    loader = Loader(plan, text, recipe, start=steps.start, stop=steps.stop, threads=WORKERS)
    for _, batch in loader:
        yield [key.rpartition("/")[2] for key in batch.keys], batch.image_BCHW


def _bytes(plan: Plan, steps: range) -> Batches:
    with ThreadPoolExecutor(WORKERS) as pool:
        blocks = Blocks(plan, pool)
        for step in steps:
            refs = plan.rows(step, 0, 1)
            blocks.fetch([*refs, *plan.rows(min(step + 4, steps.stop - 1), 0, 1)])
            yield _members(plan, blocks, refs)
            blocks.forget(refs)


def _blocks(plan: Plan) -> Batches:
    """The bytes of every block, as they are fetched, not cut into samples."""
    with ThreadPoolExecutor(WORKERS) as pool:
        blocks = Blocks(plan, pool)
        for number, (_, data) in enumerate(pool.map(blocks._read, range(len(plan.blocks)))):
            yield [unchecked(number)], [(data, b"")]


def _members(plan: Plan, blocks: Blocks, refs: list) -> tuple[list[str], list]:
    keys, found = [], []
    for ref in refs:
        record = blocks._entries.of(ref.shard)[ref.position].record
        start, data = blocks._bytes[ref[:3]].result()
        cut = {
            e: data[m.offset - start : m.offset - start + m.size] for e, m in record.members.items()
        }
        keys.append(record.key)
        found.append((cut["jpg"], cut["txt"]))
    return keys, found


if __name__ == "__main__":
    run(Job.given(), batches)
