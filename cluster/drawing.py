"""A gallery drawn by this process, or by Ray tasks: each draws one shard and may die.

A task whose worker is lost is handed out again by Ray; a second call finds what the first one drew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from ..config import parse, plain
from ..errors import ClusterError, DiptychError, Stopped
from ..finetune import exhibit
from ..finetune.exhibit import Hung
from ..finetune.score import Finished, finished
from ..finetune.start import Weights
from ..pretrain.rundir import RunDir
from .launch import cluster
from .shapes import Shape
from .signals import asked_to_stop

_RETRIES = 3


@dataclass(frozen=True)
class Order:
    """What every task is told."""

    run: str
    data: str | None
    weights: Weights
    step: int
    hung: dict[str, Any]
    url: str
    threads: int


def draw(
    found: Finished,
    hung: Hung,
    shape: Shape,
    *,
    address: str | None = None,
    told: Callable[[int], None] = lambda images: None,
) -> str:
    """Draws what is missing of a gallery; returns its folder.

    Raises:
        Stopped: Ctrl-C or SIGTERM; drawn shards are kept and the same call goes on.
        ClusterError: a shard's worker died again and again.
        DiptychError: the run draws no such images, or they cannot be written.
    """
    url = exhibit.place(found, hung)
    told(hung.samples - sum(_images(hung, n) for n in exhibit.missing(hung, url)))
    try:
        with asked_to_stop() as asked:
            if shape.workers == 1 and address is None:
                _here(found, hung, url, asked.is_set, told)
            elif exhibit.missing(hung, url):
                with cluster(address, shape):
                    there(found, hung, url, shape, asked.is_set, told)
    except (Stopped, KeyboardInterrupt):
        raise Stopped("stopped; the same command goes on from here") from None
    exhibit.seal(hung, url)
    return url


def _here(
    found: Finished,
    hung: Hung,
    url: str,
    stopping: Callable[[], bool],
    told: Callable[[int], None],
) -> None:
    if torch.cuda.is_available():
        found.task.to("cuda")
    asked = exhibit.prompts(hung, found.run.data.text)
    for number in exhibit.missing(hung, url):
        if stopping():
            raise Stopped
        told(exhibit.draw(found, hung, asked, url, number))


def there(
    found: Finished,
    hung: Hung,
    url: str,
    shape: Shape,
    stopping: Callable[[], bool],
    told: Callable[[int], None],
) -> None:
    """Draws what is missing with tasks of the Ray cluster that this process has joined."""
    order = Order(
        found.place.url,
        found.test.url,
        found.weights,
        found.checkpoint.step,
        plain(hung),
        url,
        shape.cpus_per_worker,
    )
    task = ray.remote(shard).options(
        num_cpus=shape.cpus_per_worker, num_gpus=shape.gpus_per_worker, max_retries=_RETRIES
    )
    waiting = [task.remote(order, number) for number in exhibit.missing(hung, url)]
    while waiting:
        done, waiting = ray.wait(waiting, timeout=0.5)
        if stopping():
            for each in waiting:
                ray.cancel(each, force=True)
            raise Stopped
        for result in done:
            told(_images_of(result))


_LAST: dict[str, Any] = {}
"""What this worker opened for its last shard."""


def shard(order: Order, number: int) -> int:
    """A Ray task: draws one shard. The worker keeps the model for the next one."""
    torch.set_num_threads(order.threads)
    key = (order.run, order.url)
    if _LAST.get("key") != key:
        found = finished(RunDir(order.run), data=order.data, weights=order.weights, step=order.step)
        hung = parse(Hung, order.hung, source="gallery")
        if torch.cuda.is_available():
            found.task.to("cuda")
        asked = exhibit.prompts(hung, found.run.data.text)
        _LAST.update(key=key, found=found, hung=hung, asked=asked)
    return exhibit.draw(_LAST["found"], _LAST["hung"], _LAST["asked"], order.url, number)


def _images(hung: Hung, number: int) -> int:
    return min(hung.shard, hung.samples - number * hung.shard)


def _images_of(result: Any) -> int:
    try:
        return ray.get(result)
    except RayTaskError as err:
        if isinstance(err.cause, DiptychError):
            raise err.cause from None
        raise ClusterError(f"drawing failed: {type(err.cause).__name__}: {err.cause}") from err
    except RayError as err:
        raise ClusterError(
            f"a worker that draws died {_RETRIES + 1} times ({type(err).__name__}). Lower the "
            "memory that it needs; drawn images are kept."
        ) from err
