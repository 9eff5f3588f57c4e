"""Table of contents: one line a likeness, sorted. Nothing happens at import."""

from .taef2 import Taef2 as Taef2
from .timm import Timm as Timm
