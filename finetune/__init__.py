"""Starts from what pretraining wrote: heads, evaluation, export."""
