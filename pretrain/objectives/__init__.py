"""Table of contents: one line an objective, sorted. Nothing happens at import."""

from .ddpm import DenoisingDiffusion as DenoisingDiffusion
from .flow import RectifiedFlow as RectifiedFlow
from .itm import ImageTextMatching as ImageTextMatching
from .mlm import MaskedLanguage as MaskedLanguage
from .mrm import MaskedRegion as MaskedRegion
