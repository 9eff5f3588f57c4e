"""A cache of encoder outputs, made by any number of Ray actors.

Each actor opens the encoder once and is handed one shard after another, the largest first, so that
all end together. A shard is written whole or not at all: one whose actor dies is handed out again,
and a second run finds what the first has finished.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from ..config import kinds, parse, plain
from ..data import index, precompute, storage
from ..data.cache import Spec
from ..data.index import Manifest
from ..data.precompute import Done
from ..errors import ClusterError, DiptychError, Stopped
from ..pretrain import encoders
from ..pretrain.encoder import Encoder, Opened
from .launch import cluster
from .shapes import Shape
from .signals import asked_to_stop

_PLACE_S = 120.0
_TRIES = 3
"""Deaths of its actor that a shard may cause before it is blamed."""


@dataclass(frozen=True)
class Job:
    """What every actor is told."""

    source: str
    """The folder of the dataset's index."""
    kind: str
    """The encoder's."""
    encoder: dict[str, Any]
    """Plain values of its record."""
    spec: dict[str, Any]
    """Plain values of the spec."""
    out: str
    batch: int

    def open(self, device: str) -> Opened:
        """The encoder, with its weights in memory."""
        kind = kinds(encoders)[self.kind]
        return cast(Encoder, parse(kind, self.encoder, source=self.kind)).open(device)


def job(source: Manifest, encoder: Encoder, spec: Spec, out: str, *, batch: int = 64) -> Job:
    """What makes a cache of a dataset."""
    values = encoder.kind, plain(encoder), plain(spec)
    return Job(source.url, *values, storage.absolute(out), batch)


class Mapper:
    """A Ray actor: it opens the encoder with its first shard, and encodes what it is handed."""

    def __init__(self, job: Job, cpus: int, gpu: bool) -> None:
        self.job, self.device = job, "cuda" if gpu else "cpu"
        torch.set_num_threads(cpus)

    @cached_property
    def encoder(self) -> Opened:
        """The encoder, opened when a shard first needs it."""
        return self.job.open(self.device)

    @cached_property
    def source(self) -> Manifest:
        """The dataset."""
        return index.open_manifest(self.job.source)

    def ready(self) -> None:
        """Answers once the actor has its place."""

    def shard(self, number: int) -> Done:
        """Makes one shard of the cache."""
        spec = parse(Spec, self.job.spec, source="spec")
        batch = self.job.batch
        return precompute.shard(self.source, number, self.encoder, spec, self.job.out, batch=batch)


def run(
    job: Job,
    shape: Shape,
    *,
    address: str | None = None,
    told: Callable[[Done], None] = lambda done: None,
) -> list[Done]:
    """Makes the cache with the workers of a shape; needs no cluster to be up.

    One worker without an address is this process itself.

    Raises:
        Stopped: Ctrl-C or SIGTERM; finished shards are kept and the same call goes on from there.
        StaleCacheError: the folder holds a cache that was made in another way.
        ClusterError: actors did not start, or one shard's actor died again and again.
        DiptychError: a shard cannot be read, encoded or written.
    """
    source = index.open_manifest(job.source)
    spec = parse(Spec, job.spec, source="spec")
    try:
        if shape.workers == 1 and address is None:
            opened = job.open("cuda" if shape.gpus_per_worker else "cpu")
            return precompute.precompute(source, opened, spec, job.out, batch=job.batch, told=told)
        precompute.begin(source, spec, job.out)
        with cluster(address, shape):
            done = run_on(job, shape, told=told)
        precompute.seal(source, spec, job.out)
        return done
    except (Stopped, KeyboardInterrupt):
        raise Stopped("stopped; the same command goes on from here") from None


def run_on(job: Job, shape: Shape, *, told: Callable[[Done], None]) -> list[Done]:
    """Makes every shard on a Ray cluster that this process has joined."""
    shards = index.open_manifest(job.source).shards
    waiting = deque(sorted(range(len(shards)), key=lambda number: -shards[number].bytes))
    tries, done = Counter[int](), list[Done]()
    busy: dict[Any, tuple[Any, int]] = {}

    def hand(actor: Any) -> None:
        """Gives an actor its next shard, or ends it."""
        if waiting:
            number = waiting.popleft()
            busy[actor.shard.remote(number)] = actor, number
        else:
            ray.kill(actor)

    try:
        with asked_to_stop() as asked:
            actors = [_actor(job, shape) for _ in range(min(shape.workers, len(shards)))]
            _await_one(actors, shape)
            for actor in actors:
                hand(actor)
            while busy:
                ready, _ = ray.wait(list(busy), timeout=0.5)
                if asked.is_set():
                    raise Stopped
                for result in ready:
                    actor, number = busy.pop(result)
                    try:
                        done.append(_done(result))
                        told(done[-1])
                    except RayActorError as err:
                        tries[number] += 1
                        if tries[number] == _TRIES:
                            raise _blame(shards[number].url, err) from err
                        waiting.appendleft(number)
                        actor = _actor(job, shape)
                    hand(actor)
    finally:
        for actor, _ in busy.values():
            ray.kill(actor)
    return done


def _actor(job: Job, shape: Shape) -> Any:
    kind = ray.remote(Mapper).options(
        num_cpus=shape.cpus_per_worker, num_gpus=shape.gpus_per_worker, max_restarts=0
    )
    return kind.remote(job, shape.cpus_per_worker, shape.gpus_per_worker > 0)


def _await_one(actors: list[Any], shape: Shape) -> None:
    """Waits until one actor has its place; the others may come when there is room.

    Raises:
        ClusterError: there is no room for any.
    """
    ready, _ = ray.wait([actor.ready.remote() for actor in actors], timeout=_PLACE_S)
    if not ready:
        wanted = f"{shape.cpus_per_worker} CPUs and {shape.gpus_per_worker} GPUs"
        raise ClusterError(
            f"no room for a worker of {wanted} within {_PLACE_S:.0f} s; the cluster has "
            f"{ray.cluster_resources()}. Add nodes, or ask for less."
        )


def _done(result: Any) -> Done:
    try:
        return ray.get(result)
    except RayTaskError as err:
        if isinstance(err.cause, DiptychError):
            raise err.cause from None
        raise ClusterError(
            f"an encoder's worker failed: {type(err.cause).__name__}: {err.cause}"
        ) from err


def _blame(shard: str, err: RayActorError) -> ClusterError:
    cause = " ".join(str(err).split())[:300]
    return ClusterError(
        f"the worker died {_TRIES} times while it encoded {shard}. Lower --batch if memory ran "
        f"out, or mend the cause; finished shards are kept. Ray says: {cause}"
    )
