"""Table of contents: one line a head, sorted. Nothing happens at import."""

from .grounding import Grounding as Grounding
from .reasoning import VisualReasoning as VisualReasoning
from .vqa import VisualQuestion as VisualQuestion
