"""Table of contents: one line an objective, sorted. Nothing happens at import."""

from .contrastive import Contrastive as Contrastive
from .ddpm import DenoisingDiffusion as DenoisingDiffusion
from .flow import RectifiedFlow as RectifiedFlow
from .itm import ImageTextMatching as ImageTextMatching
from .mlm import MaskedLanguage as MaskedLanguage
from .mrm import MaskedRegion as MaskedRegion
from .noised_class import NoisedClass as NoisedClass
from .prefix import PrefixLanguage as PrefixLanguage
from .reconstruct import Reconstruction as Reconstruction
from .wra import WordRegionAlignment as WordRegionAlignment
