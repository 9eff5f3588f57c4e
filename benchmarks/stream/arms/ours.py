"""Diptych's loader from the bucket (or from this disk), with two decoding threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import botocore.client  # what talking to S3 imports: every other arm has it before its clock starts
import botocore.session  # noqa: F401

from diptych.data import fetch, index, storage, tokens, walk
from diptych.data.index import Manifest
from diptych.data.loader import Loader, Recipe
from diptych.data.plan import Plan
from diptych.data.transforms import Pixels

from ..arm import BATCH, WORKERS, Batches, Job, run, unchecked

_RANGE_BYTES = 8 << 20
_CONNECTIONS = 8


def batches(job: Job) -> Batches:
    """Pixels from the loader as training uses it, members' bytes, or ranges as they are fetched."""
    manifest = index.open_manifest(job.remote)
    if job.pixels == "fetch":
        fetch.span(manifest.shards[0].url, 0, 1)
        yield [], []  # here the clock starts, with everything imported
        for number, data in enumerate(_ranges(manifest)):
            yield [unchecked(number)], [(data, b"")]
        return
    plan = Plan(manifest, 0, BATCH)
    start, stop = job.first // BATCH, manifest.samples // BATCH
    if job.raw:
        for _, found in walk.raw(plan, start=start, stop=stop):
            members = [(raw.blobs["jpg"], raw.blobs["txt"]) for raw in found]
            yield [raw.record.key for raw in found], members
        return
    text = tokens.load(storage.join(job.remote, "tokenizer.json"), 64)
    recipe = Recipe(text="txt", image_size=job.size, seed=0, pixels=Pixels(resize=job.resize))
    # `bare` reads nothing ahead, so that what the first batch needs can be counted to the byte.
    bare: dict[str, Any] = {"ahead": 1, "memory": 0} if job.route == "bare" else {}
    loader = Loader(plan, text, recipe, start=start, stop=stop, threads=WORKERS, **bare)
    for _, batch in loader:
        yield [key.rpartition("/")[2] for key in batch.keys], batch.image_BCHW


def _ranges(manifest: Manifest) -> Iterator[memoryview]:
    """Every shard in ranges, as many at once as the loader reads."""
    waiting: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for shard in manifest.shards:
            for start in range(0, shard.bytes, _RANGE_BYTES):
                end = min(shard.bytes, start + _RANGE_BYTES)
                waiting.append(pool.submit(fetch.span, shard.url, start, end))
                if len(waiting) == _CONNECTIONS:
                    yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


if __name__ == "__main__":
    run(Job.given(), batches)
