"""Imported by the template that ranks are forked from: does once what each would do by itself.

What a rank needs at its first request to a bucket is read here, and no connection is made.
"""

import contextlib
import importlib
from typing import Any

from ..data.s3 import descriptions
from .instead import instead


def without_compiling(module: str) -> None:
    """Imports a module whose functions DeepSpeed decorates for torch.compile, plain as they are.

    Decorating them imports all of torch's compiler, a second of a processor for each rank.
    """
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    with (
        instead(compiler, "compile", lambda _: _plain),
        contextlib.suppress(ImportError),  # a version of DeepSpeed that has no such module
    ):
        importlib.import_module(module)


def _plain(*_: Any, **__: Any) -> Any:
    """A decorator that changes nothing."""
    return lambda function: function


descriptions()
# DeepSpeed looks there for an optimiser of its own, which no run uses.
without_compiling("deepspeed.runtime.zero.muon.muon_optimizer")
