"""Every model, objective and head that a recipe may name: the tables of contents, put together."""

from ..config import Kinds, kinds
from ..pretrain import controls, models, objectives
from . import adapters, heads

KINDS: Kinds = kinds(adapters, controls, models, objectives, heads)
