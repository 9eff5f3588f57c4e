"""What a run asks of the bucket, and its time and money, from rates that are stated."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..data.plan import Plan
from ..errors import RecipeError, StaleCacheError
from ..pretrain.run import Run
from .shapes import Shape

_LOOK_ROWS = 40_000
_PART = 50 << 20
"""Bytes of one part of an upload."""
_PUTS_A_RANK = 3
"""List of slices, page of the ledger; the slices themselves come in parts."""
_PUTS_A_CHECKPOINT = 6
"""Of rank 0 and the driver: manifest, metrics, logs, status, TensorBoard."""


@dataclass(frozen=True)
class Rates:
    """What the user says things cost."""

    step_s: float | None = None
    """Seconds of a step."""
    upload_mb: float = 100.0
    """MB/s to the bucket, of each worker."""
    worker_hour: float | None = None
    """Money for an hour of one worker."""
    egress_gb: float | None = None
    """Money for a GB read from the bucket."""
    requests_1000: float | None = None
    """Money for a thousand requests."""


class Reading(NamedTuple):
    """What all workers read of the data in the whole run."""

    requests: int
    bytes: int
    shards_of_a_rank: int
    """Different shards that rank 0 reads of, in the steps that were looked at."""
    steps: int
    """How many were looked at."""


def reading(chart: Plan, run: Run, shape: Shape) -> Reading:
    """Blocks that ranks fetch, each once for its window: where slices of two ranks fall into one
    block, both fetch it. How often, is counted over the first steps. Caches are read like the data,
    and instead of it where they have all of it."""
    steps = min(run.steps, max(1, _LOOK_ROWS // run.batch))
    blocks: set[tuple[int, ...]] = set()
    fetched: set[tuple[int, ...]] = set()
    shards: set[tuple[int, int]] = set()
    for step in range(steps):
        for rank in range(shape.workers):
            for ref in chart.rows(step, rank, shape.workers):
                place = (ref.source, ref.epoch, ref.window, ref.block)
                blocks.add(place)
                fetched.add((rank, *place))
                if not rank:
                    shards.add((ref.source, ref.shard))
    again = len(fetched) / len(blocks)
    try:
        joined = run.joined(chart)
    except StaleCacheError:  # not made yet, perhaps: a plan is made before them
        joined = None
    own = [] if run.rows.without_shards(joined) else [chart]
    requests = size = 0.0
    for plan in [*own, *(joined.plans if joined else ())]:
        for source, order, slots in zip(plan.sources, plan.orders, plan.mix.slots, strict=True):
            epochs = run.steps * run.batch * slots / plan.mix.slots.sum() / source.manifest.samples
            requests += epochs * order.blocks * again
            size += epochs * source.manifest.bytes * again
    return Reading(math.ceil(requests), math.ceil(size), len(shards), steps)


def saving(run: Run, shape: Shape, checkpoint_bytes: int) -> int:
    """Requests that all checkpoints of the run take."""
    share = checkpoint_bytes / shape.workers
    each = shape.workers * (_PUTS_A_RANK + math.ceil(share / _PART)) + _PUTS_A_CHECKPOINT
    return each * math.ceil(run.steps / run.checkpoint_steps)


def facts(
    chart: Plan, run: Run, shape: Shape, rates: Rates, checkpoint_bytes: int
) -> dict[str, Any]:
    """Requests, bytes, seconds and money of a run, as far as the rates say."""
    found, puts = reading(chart, run, shape), saving(run, shape, checkpoint_bytes)
    upload_s = checkpoint_bytes / shape.workers / rates.upload_mb / 1e6
    told: dict[str, Any] = {
        f"shards that a rank reads in {found.steps} steps": found.shards_of_a_rank,
        "requests for data": found.requests,
        "requests for checkpoints": puts,
        "bytes of data read": found.bytes,
        f"seconds to upload a checkpoint, at {rates.upload_mb:g} MB/s a worker": round(upload_s, 2),
    }
    money: dict[str, float] = {}
    if rates.step_s is not None:
        wall_s = run.steps * rates.step_s
        told["time"] = _clock(wall_s)
        told["seconds between checkpoints"] = round(run.checkpoint_steps * rates.step_s, 2)
        told["MB/s of data a worker"] = round(found.bytes / wall_s / shape.workers / 1e6, 3)
        if rates.worker_hour is not None:
            money["machines"] = wall_s / 3600 * shape.workers * rates.worker_hour
    if rates.egress_gb is not None:
        money["data read"] = found.bytes / 1e9 * rates.egress_gb
    if rates.requests_1000 is not None:
        money["requests"] = (found.requests + puts) / 1000 * rates.requests_1000
    told |= {f"cost of {name}": round(price, 2) for name, price in money.items()}
    return {**told, **({"cost": round(sum(money.values()), 2)} if money else {})}


def require_pace(run: Run, shape: Shape, rates: Rates, checkpoint_bytes: int) -> None:
    """Refuses checkpoints that come faster than they can be uploaded.

    Raises:
        RecipeError: they do; training would wait for them.
    """
    if rates.step_s is None:
        return
    between_s = run.checkpoint_steps * rates.step_s
    upload_s = checkpoint_bytes / shape.workers / rates.upload_mb / 1e6
    if upload_s > between_s:
        least = -(-math.ceil(upload_s / rates.step_s) // run.log_steps) * run.log_steps
        raise RecipeError(
            f"a checkpoint takes {upload_s:.1f} s to upload, one comes every {between_s:.1f} s: "
            f"training would wait. Say --set checkpoint_steps={least}, or a faster --upload-mb."
        )


def _clock(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    clock = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{days} days {clock}" if days else clock
