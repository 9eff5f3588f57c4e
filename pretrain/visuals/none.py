"""No eyes: words alone, as in BERT (Devlin et al. 2019). B rows, D width."""

from typing import ClassVar

from torch import Tensor, nn

from ..objective import View
from ..visual import Visual


class Nothing(Visual):
    """No regions: a single stream of words is BERT, and a sample needs no image."""

    kind: ClassVar[str] = "none"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def regions(self, image_size: int) -> int:
        return 0

    def region_values(self, image_size: int) -> int:
        return 0

    def build(self, width: int, image_size: int, epsilon: float) -> "Blank":
        return Blank(width)


class Blank(nn.Module):
    """view -> (B, 0, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, view: View) -> Tensor:
        return view.image_BCHW.new_zeros(view.tokens_BL.shape[0], 0, self.width)
