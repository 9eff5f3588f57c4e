"""Table of contents: one line a model, sorted. Nothing happens at import."""

from .dit import Dit as Dit
from .unet import Unet as Unet
from .vlp import Vlp as Vlp
