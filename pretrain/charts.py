"""The plan of a run's training data."""

from collections.abc import Callable

from ..data import index, storage
from ..data.plan import Plan, Source
from ..errors import DataError
from .run import Run


def open_plan(
    run: Run, data: str | None = None, counted: Callable[[int], None] = lambda shards: None
) -> Plan:
    """The plan of a run's training data.

    Raises:
        DataError: `data` is given, and the dataset's digest is another.
    """
    sources = [
        Source(index.open_manifest(one.url), one.weight, name, one.loss)
        for one, name in zip(run.data.sources, _names(run), strict=True)
    ]
    plan = Plan(sources, run.seed, run.batch, buckets=run.data.buckets, counted=counted)
    if data and plan.data != data:
        raise DataError(
            f"{' + '.join(one.url for one in run.data.sources)} changed since the run began "
            f"(digest {plan.data}, was {data}). "
            "Start a run under another name, or restore the data."
        )
    return plan


def _names(run: Run) -> list[str]:
    """What stands before the shards of each source: nothing, where there is but one."""
    names = [storage.name(one.url) for one in run.data.sources]
    if len(names) == 1:
        return [""]
    return [f"{name}.{n}" if names.count(name) > 1 else name for n, name in enumerate(names)]
