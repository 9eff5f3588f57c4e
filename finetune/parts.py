"""Every model, objective and head that a recipe may name: the tables of contents, put together."""

from ..config import Kinds, kinds
from ..pretrain import models, objectives
from . import adapters, heads

KINDS: Kinds = kinds(adapters, models, objectives, heads)
