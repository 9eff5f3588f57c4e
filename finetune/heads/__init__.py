"""Table of contents: one line a head, sorted. Nothing happens at import."""

from .vqa import VisualQuestion as VisualQuestion
