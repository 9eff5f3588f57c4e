"""Diptych: pretraining and fine-tuning of vision-language and text-to-image models."""

__version__ = "0.1.0"
