"""Another library's function replaced for a while, where it has no option for what is wanted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Within it `owner.name` is what `make` makes of it, if there is such a thing."""
    before = getattr(owner, name, None)
    if before is not None:
        setattr(owner, name, make(before))
    try:
        yield
    finally:
        if before is not None:
            setattr(owner, name, before)
