"""No adapter at all: every weight of some parts is trained, and those parts are kept whole."""

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from ...pretrain.adapter import Adapter, Site


class Full(Adapter):
    """All weights of the parts that it is on; the other parts stay as they are."""

    kind: ClassVar[str] = "full"

    def put(self, site: Site) -> Iterable[nn.Parameter]:
        return [param for name, param in site.model.named_parameters() if site.inside(name)]
