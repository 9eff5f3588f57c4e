"""Table of contents: one line an encoder, sorted. Nothing happens at import."""

from .autoencoder import Autoencoder as Autoencoder
from .canny import Canny as Canny
from .clip import Clip as Clip
from .detector import Detector as Detector
from .grid import Grid as Grid
from .inception import Inception as Inception
from .layout import Layout as Layout
from .open_clip_image import OpenClipImage as OpenClipImage
from .open_clip_text import OpenClipText as OpenClipText
from .palette import Palette as Palette
from .scribble import Scribble as Scribble
from .soft_edges import SoftEdges as SoftEdges
from .taef2 import Taef2 as Taef2
from .text import Text as Text
