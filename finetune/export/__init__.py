"""Table of contents: one line an export target, sorted. Nothing happens at import.

A target is a module with `write(out, run, task, text, facts)`; `ship` says how each is proven.
"""

from . import folder as folder
from . import hub as hub
