"""Table of contents: one line an export target, sorted. Nothing happens at import.

A target is a module with `write(out, run, task, text, facts)` and `load(path) -> Loaded`.
"""

from . import folder as folder
