"""Resume from the plan alone, after 10^n samples of an index that only exists in memory."""

import hashlib

from diptych.data.index import Manifest, Shard
from diptych.data.plan import Plan

from ..arm import BATCH, Batches, Job, run, unchecked

SHARDS, SAMPLES = 2000, 10_000


def manifest() -> Manifest:
    """20 million samples of 40 KB in 2,000 shards."""
    return Manifest("s3://none/index", tuple(_shard(number) for number in range(SHARDS)))


def _shard(number: int) -> Shard:
    return Shard(
        url=f"s3://none/{number:05d}.tar",
        bytes=SAMPLES * 40_000,
        etag=str(number),
        samples=SAMPLES,
        lines=hashlib.sha256(str(number).encode()).hexdigest(),
    )


FOUND = manifest()


def batches(job: Job) -> Batches:
    """The first batch after a restart: the plan is made anew, and asked for one step."""
    plan = Plan(FOUND, 0, BATCH)
    rows = plan.rows(10 ** int(job.route) // BATCH, 0, 1)
    yield [unchecked(number) for number in range(len(rows))], [(b"", b"")] * len(rows)


if __name__ == "__main__":
    run(Job.given(), batches)
