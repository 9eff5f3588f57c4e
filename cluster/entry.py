"""What a submitted job runs on the cluster: `python -m diptych.cluster.entry URL DIGEST PRIORITY`.

Everything else it needs is in the run's folder. It waits for its turn and then drives the run as
`train` does.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

import ray
from rich.console import Console

from ..config import from_yaml, parse
from ..data import storage
from ..errors import ClusterError, DiptychError, RunError, Stopped
from ..finetune.parts import KINDS
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from . import code, line
from .launch import cluster
from .shapes import Shape
from .signals import asked_to_stop
from .status import STOP, busy, here
from .train import run_on


def main(url: str, digest: str, priority: int) -> int:
    """Returns the exit code: 0 where the run finished or was stopped."""
    place = RunDir(url)
    try:
        require_same(digest)
        run, shape = _ordered(place)
        with cluster("auto", shape):
            _go(run, shape, place, priority)
    except Stopped:
        return 0
    except DiptychError as err:
        print(f"error: {err}", flush=True)
        with contextlib.suppress(DiptychError):  # perhaps the bucket itself is what is wrong
            if not _taken(place):
                line.status(place, "failed", str(err))
        return 2
    return 0


def _taken(place: RunDir) -> bool:
    """Whether another driver has taken the run over: its folder is not ours to write to then."""
    status = place.json("status.json")
    other = busy(status) and status["state"] != "submitted" and not here().items() <= status.items()
    return other or status.get("state") == "finished"


def require_same(digest: str) -> None:
    """Compares this code with the submitter's.

    Raises:
        ClusterError: it is another.
    """
    found = code.identity()
    if found.digest != digest:
        raise ClusterError(
            f"the cluster runs other code (digest {found.digest}, version {found.version}, from "
            f"{code.ROOT}) than was submitted (digest {digest}). Something stands before the "
            "wheel in the cluster's Python path: remove it from PYTHONPATH on the nodes."
        )


def _ordered(place: RunDir) -> tuple[Run, Shape]:
    """The recipe and the shape that `submit` left in the run's folder."""
    url = place.at("shape.yaml")
    if not storage.exists(url):
        raise RunError(
            f"{url} cannot be read on the cluster. Is the folder in a bucket, or on a disk "
            "that all nodes share?"
        )
    shape = parse(Shape, from_yaml(storage.read(url), source=url), source=url)
    return place.recipe(KINDS), shape


def _go(run: Run, shape: Shape, place: RunDir, priority: int) -> None:
    asked = float(place.json("submission.json").get("asked", time.time()))
    at = ray.get_runtime_context().gcs_address
    with line.Waiting(place, run, shape, at, priority, asked) as waiting:
        with asked_to_stop() as told:
            try:
                waiting.wait(_stopping(place, told), _teller(place, run))
            except Stopped:
                line.status(place, "stopped", "removed from the line", steps=run.steps)
                raise
        data = str(place.json("run.json")["data"])
        run_on(run, shape, place, data, console=Console(width=120))


def _teller(place: RunDir, run: Run) -> Callable[[str], None]:
    said = ""

    def tell(words: str) -> None:
        nonlocal said
        if words != said:
            print(words, flush=True)
        said = words
        line.status(place, "waiting", words, steps=run.steps)

    return tell


def _stopping(place: RunDir, told: threading.Event) -> Callable[[], bool]:
    return lambda: told.is_set() or storage.exists(place.at(STOP))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
