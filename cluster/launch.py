"""The driver of a run: place a group of workers, listen, and start it again when it breaks.

Plain Ray actors in a placement group rather than Ray Train: measured on this project's machine,
Ray Train takes 21 s cold to the first all-reduce, actors 2-5 s (docs/LOG.md).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

from ..config import plain
from ..errors import ClusterError, DiptychError, Stopped
from ..pretrain import checkpoint
from ..pretrain.run import Run
from .job import Event, Job, Place
from .shapes import Shape
from .worker import spawn

_DEAD = (RayActorError, GetTimeoutError)
"""What a worker that died, or has not answered for `_SILENT_S`, makes Ray raise."""
_PLACE_S = 120.0
_SILENT_S = 60.0
_BLAME_S = 10.0


class Group:
    """The workers of one attempt."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        bundle = {"CPU": shape.cpus_per_worker, "GPU": shape.gpus_per_worker}
        bundle = {name: float(count) for name, count in bundle.items() if count}
        self.slots = placement_group([bundle] * shape.workers, strategy="PACK")
        if not self.slots.wait(_PLACE_S):
            remove_placement_group(self.slots)
            raise ClusterError(
                f"no room for {shape.workers} workers of {bundle} within {_PLACE_S:.0f} s; the "
                f"cluster has {ray.cluster_resources()}. Add nodes, or ask for less."
            )
        self.workers: list[Any] = [spawn(rank, shape, self.slots) for rank in range(shape.workers)]

    def places(self) -> list[Place]:
        """Where each rank is."""
        return ray.get([worker.where.remote() for worker in self.workers])

    def run(self, job: Job, meet: Place) -> list[Any]:
        """What each rank's `run` will return."""
        return [worker.run.remote(job, meet) for worker in self.workers]

    def drain(self) -> Iterator[Event]:
        """What the living workers have to tell."""
        for worker in self.workers:
            with contextlib.suppress(RayActorError):
                yield from ray.get(worker.drain.remote(), timeout=_SILENT_S)

    def stop(self) -> None:
        """Asks all workers to end at the next report."""
        for worker in self.workers:
            worker.stop.remote()

    def kill(self) -> None:
        """Ends all workers now."""
        for worker in self.workers:
            ray.kill(worker)
        remove_placement_group(self.slots)


def drive(
    run: Run,
    shape: Shape,
    url: str,
    data: str,
    *,
    hear: Callable[[Event], None],
    begin: Callable[[int, list[Place]], int],
    stopping: Callable[[], bool],
) -> int:
    """Runs to the end, through the deaths of workers, and returns the steps done.

    Args:
        run: the recipe.
        shape: the machines.
        url: the run's folder.
        data: digest of the training data.
        hear: told of every event of every worker.
        begin: told of each attempt, its first step and where its ranks are; gives it a number.
        stopping: asked twice a second; once true, the run keeps a checkpoint and ends.

    Raises:
        ClusterError: workers died more often than the shape allows.
        DiptychError: a worker met an error that no restart mends.
        Stopped: `stopping` said so.
    """
    failures, reached = 0, -1
    while True:
        start = max(checkpoint.steps(url), default=0)
        if start == run.steps:
            return start
        failures = 0 if start > reached else failures
        reached = max(start, reached)
        job = Job(plain(run), url, data, shape, attempt=0, start=start)
        try:
            return _attempt(job, hear, begin, stopping)
        except _DEAD as err:
            failures += 1
            note = f"a worker died ({type(err).__name__}); restart {failures}"
            hear(Event("log", -1, {"text": f"{note} of {shape.max_failures}"}))
            if failures > shape.max_failures:
                raise ClusterError(
                    f"workers died {failures} times without a new checkpoint after step {start}. "
                    f"The logs are in {url}/logs. Raise max_failures, or mend the cause."
                ) from err


def _attempt(
    job: Job,
    hear: Callable[[Event], None],
    begin: Callable[[int, list[Place]], int],
    stopping: Callable[[], bool],
) -> int:
    group = Group(job.shape)
    try:
        places = group.places()
        job = replace(job, attempt=begin(job.start, places))
        results = group.run(job, places[0])
        asked, steps, running = False, job.start, results
        while running:
            done, running = ray.wait(running, num_returns=len(running), timeout=0.5)
            for event in group.drain():
                hear(event)
            for result in done:
                steps = _result(result, results)
            if stopping() and not asked:
                asked = True
                group.stop()
        for event in group.drain():
            hear(event)
        if asked and steps < int(job.recipe["steps"]):
            raise Stopped
        return steps
    finally:
        group.kill()


def _result(result: Any, everyone: list[Any]) -> int:
    """What a rank returned; if it failed because another died, the death is raised."""
    try:
        return ray.get(result)
    except RayTaskError as err:
        cause = err.cause
        if isinstance(cause, DiptychError):
            raise cause from None
        done, _ = ray.wait(everyone, num_returns=len(everyone), timeout=_BLAME_S)
        for other in done:
            with contextlib.suppress(RayTaskError):  # it broke like this one; is a third one dead?
                ray.get(other)
        raise ClusterError(f"a worker failed: {type(cause).__name__}: {cause}") from err


@contextlib.contextmanager
def cluster(address: str | None, shape: Shape) -> Iterator[None]:
    """A Ray cluster: a private one on this machine, or the one at an address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        cpus = max(os.cpu_count() or 1, shape.workers * shape.cpus_per_worker)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    else:
        ray.init(address=address, **options)
    try:
        yield
    finally:
        ray.shutdown()
