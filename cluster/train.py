"""`train`: a recipe on a shape, begun or continued, from the first check to the last checkpoint."""

import platform
import time

from rich.console import Console

from .. import __version__
from ..config import to_yaml
from ..data import storage, tokens
from ..errors import DiptychError, RunError, Stopped
from ..finetune.start import require_start
from ..pretrain.autoencoding import Decoded
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.settle import settled
from .launch import Drive, cluster
from .shapes import Shape
from .signals import asked_to_stop
from .status import STOP, busy
from .track import Tracker
from .worker import open_plan


def prepare(run: Run, shape: Shape, url: str) -> tuple[RunDir, str]:
    """Checks all that can be checked before a worker starts; makes the run's folder.

    Returns (the folder, the training data's digest).

    Raises:
        DiptychError: what would fail later, said now.
    """
    shape.sizes(run)
    plan = open_plan(run)
    run.joined(plan)
    text = (
        storage.read(run.data.tokenizer)
        if run.data.tokenizer.endswith(".json")
        else (tokens.load(run.data.tokenizer, run.model.tokens).tokenizer.to_str().encode())
    )
    words = tokens.from_text(text.decode(), run.model.tokens, source=run.data.tokenizer)
    if run.new_words:
        text = words.grown(run.new_words).tokenizer.to_str().encode()
    if run.start_from:
        require_start(run.start_from)
    place = RunDir(storage.absolute(url))
    storage.require_bucket(place.url)
    _require_free(place)
    storage.delete(place.at(STOP))
    place.create(
        run,
        {
            "data": plan.data,
            "plan": plan.digest,
            "frozen": {name: part.digest() for name, part in run.frozen.items()},
            "samples": plan.samples,
            "buckets": plan.table(),
            "diptych": __version__,
            "python": platform.python_version(),
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )
    storage.write(place.at("tokenizer.json"), text)
    storage.write(place.at("shape.yaml"), to_yaml(shape).encode())
    return place, plan.data


def train(
    run: Run, shape: Shape, url: str, *, console: Console, address: str | None = None
) -> RunDir:
    """Runs a recipe to its end, or on from where it was; needs no cluster to be up.

    Raises:
        Stopped: Ctrl-C or SIGTERM; a checkpoint is kept and the same call goes on from there.
        DiptychError: whatever a user can mend.
    """
    run = settled(run)
    place, data = prepare(run, shape, url)
    for row in place.json("run.json").get("buckets", []):
        text = f"bucket {row['bucket']}: {row['samples']:,} samples, {row['cropped']:.1%} cropped"
        console.print(text, highlight=False)
    with cluster(address, shape):
        return run_on(run, shape, place, data, console=console)


def run_on(run: Run, shape: Shape, place: RunDir, data: str, *, console: Console) -> RunDir:
    """Like `train`, on a Ray cluster that this process has joined, after `prepare`."""
    with Tracker(run, place, console) as tracker, asked_to_stop() as asked:
        tracker.status("running", "gathering workers")
        try:
            Drive(
                run,
                shape,
                place.url,
                data,
                hear=tracker.hear,
                begin=tracker.begin,
                stopping=lambda: asked.is_set() or tracker.stop_asked,
            ).go()
        except Stopped:
            tracker.log("stopped; the same command goes on from here")
            _close(tracker, "stopped")
            raise
        except KeyboardInterrupt:
            _close(tracker, "stopped", "interrupted twice, at once")
            raise
        except DiptychError as err:
            tracker.keep(str(err), -1)
            _close(tracker, "failed", str(err))
            raise
        _publish(run, place, tracker)
        _close(tracker, "finished")
    return place


def _publish(run: Run, place: RunDir, tracker: Tracker) -> None:
    """Leaves a trained first stage where a latent run reads it, its scale measured."""
    if run.model.gives is Decoded:
        from ..finetune.trained_stage import publish

        found = publish(place)
        tracker.log(f"first_stage/ is there; latents are scaled by {found['scaling_factor']:g}")


def _close(tracker: Tracker, state: str, note: str = "") -> None:
    tracker.status(state, note)
    tracker.flush()


def _require_free(place: RunDir) -> None:
    """Two drivers on one run would overwrite each other.

    Raises:
        RunError: another process is at it.
    """
    if busy(place.json("status.json")):
        status = place.json("status.json")
        who = f"being run by process {status['pid']} on" if status["pid"] else "submitted to"
        raise RunError(
            f"{place.url} is {who} {status['host']}. `diptych stop {place.url}` ends it."
        )
