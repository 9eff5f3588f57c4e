"""Table of contents: one line a control, sorted. Nothing happens at import."""

from .controlnet import ControlNet as ControlNet
from .t2i_adapter import T2IAdapter as T2IAdapter
