"""Shards in, batches out. Knows nothing of models; imports neither ray nor deepspeed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .streams import stream as stream


def __getattr__(name: str) -> Any:
    # `from diptych.data import stream` works, and torch is imported only then.
    if name == "stream":
        from .streams import stream

        return stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
