"""Two ways to use a run that there is: go on with it, or begin another one from its weights.

`resume` is the first: the same recipe, optimiser, schedule and place in the data, to the same end.
`--start-from` is the second: a new run takes weights, and nothing else.
"""

import re

from ..config import from_yaml, override, parse
from ..data import storage
from ..errors import RunError
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from .shapes import Shape, find_shape


def shape_again(place: RunDir, run: Run, named: str | None, settings: list[str]) -> Shape:
    """The shape to go on with: that of the run's folder, or the one that is named.

    Raises:
        RunError: the run is finished.
    """
    status = place.json("status.json")
    if status.get("state") == "finished":
        raise RunError(
            f"{place.url} is finished, at step {status['step']} of {run.steps}: nothing is left to "
            "resume. To train on from its weights, begin another run: "
            f"diptych train RECIPE --start-from {place.url} --run NAME"
        )
    url = place.at("shape.yaml")
    if named or not storage.exists(url):
        return find_shape(named or "pair", settings)
    values = from_yaml(storage.read(url), source=url)
    return parse(Shape, override(values, settings), source=url)


def require_another(run: Run, url: str) -> None:
    """A run cannot begin from its own weights.

    Raises:
        RunError: it would.
    """
    if run.start_from and run.start_from.rstrip("/") == url.rstrip("/"):
        raise RunError(
            f"{url} cannot start from its own weights. To go on with it: diptych resume {url}. To "
            "begin another run from them, name that one: --run NAME."
        )


def require_name(name: str) -> None:
    """Refuses names that mean another folder (`..`), or are not a run's (`~line`).

    Raises:
        RunError: it is one.
    """
    if not re.fullmatch(r"\w[\w .-]{0,199}", name):
        raise RunError(
            f"{name[:40]!r} cannot be the name of a run. It begins with a letter or a digit, and "
            "has letters, digits, '_', '-', '.' and spaces, 200 at most: --run my-run."
        )
