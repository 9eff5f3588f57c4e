"""Table of contents: one line an objective, sorted. Nothing happens at import."""

from .contrastive import Contrastive as Contrastive
from .itm import ImageTextMatching as ImageTextMatching
from .mlm import MaskedLanguage as MaskedLanguage
from .mrm import MaskedRegion as MaskedRegion
from .prefix import PrefixLanguage as PrefixLanguage
from .wra import WordRegionAlignment as WordRegionAlignment
