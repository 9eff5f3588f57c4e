"""Table of contents: one line an encoder, sorted. Nothing happens at import."""

from .autoencoder import Autoencoder as Autoencoder
from .grid import Grid as Grid
from .taef2 import Taef2 as Taef2
from .text import Text as Text
