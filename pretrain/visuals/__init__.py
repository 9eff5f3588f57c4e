"""Table of contents: one line a way to see, sorted. Nothing happens at import."""

from .cnn import Cnn as Cnn
from .none import Nothing as Nothing
from .patches import Patches as Patches
from .regions import Regions as Regions
