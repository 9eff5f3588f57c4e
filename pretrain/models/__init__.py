"""Table of contents: one line a model, sorted. Nothing happens at import."""

from .vlp import Vlp as Vlp
