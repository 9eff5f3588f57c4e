"""Table of contents: one line a first stage, sorted. Nothing happens at import."""

from .autoencoder import Autoencoder as Autoencoder
from .pixels import Pixels as Pixels
from .taef2 import Taef2 as Taef2
from .vq import Vq as Vq
