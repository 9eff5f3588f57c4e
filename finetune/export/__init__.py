"""Table of contents: one line an export target, sorted. Nothing happens at import."""
