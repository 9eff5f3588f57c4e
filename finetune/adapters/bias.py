"""BitFit (Ben Zaken et al., ACL 2022): biases alone are trained."""

import re
from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from ...errors import RecipeError
from ...pretrain.adapter import Adapter, Site


class Bias(Adapter):
    """The biases of all modules, norms included, or of those that are named."""

    kind: ClassVar[str] = "bias"
    targets: tuple[str, ...] = (".*",)
    """Regular expressions of whole names of modules."""

    def put(self, site: Site) -> Iterable[nn.Parameter]:
        found = [
            param
            for name, param in site.model.named_parameters()
            if name.endswith("bias") and site.inside(name) and self._means(name.rpartition(".")[0])
        ]
        if not found:
            raise RecipeError(f"adapter 'bias': no module of {self.targets} has a bias.")
        return found

    def _means(self, module: str) -> bool:
        return any(re.fullmatch(pattern, module) for pattern in self.targets)
