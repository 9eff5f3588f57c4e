"""Table of contents: one line a model, sorted. Nothing happens at import."""

from .clip import Clip as Clip
from .dit import Dit as Dit
from .kl_autoencoder import KlAutoencoder as KlAutoencoder
from .noisy_classifier import NoisyClassifier as NoisyClassifier
from .single_stream import SingleStream as SingleStream
from .two_stream import TwoStream as TwoStream
from .unet import Unet as Unet
from .vlp import Vlp as Vlp
from .vq_autoencoder import VqAutoencoder as VqAutoencoder
