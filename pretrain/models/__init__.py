"""Table of contents: one line a model, sorted. Nothing happens at import."""

from .single_stream import SingleStream as SingleStream
from .two_stream import TwoStream as TwoStream
from .vlp import Vlp as Vlp
