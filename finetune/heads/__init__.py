"""Table of contents: one line a head, sorted. Nothing happens at import."""

from .attend_tell import AttendTell as AttendTell
from .grounding import Grounding as Grounding
from .reasoning import VisualReasoning as VisualReasoning
from .scst import SelfCritical as SelfCritical
from .show_tell import ShowTell as ShowTell
from .vqa import VisualQuestion as VisualQuestion
