"""LoKr (Yeh et al., ICLR 2024): a Kronecker product of two small matrices beside each weight."""

from typing import Any, ClassVar

from pydantic import Field

from ..tuner import Tuner


class Lokr(Tuner):
    """W x + (alpha / r) (C kron B A) x, with C = 0 at first.

    Where the second factor is smaller than the rank, it is one whole matrix.
    """

    kind: ClassVar[str] = "lokr"
    factor: int = Field(default=-1, ge=-1)
    """Rows and columns of the first factor; -1 for about the square root of the weight's."""
    decompose_both: bool = False
    """Whether the first factor has a low rank too."""

    def config(self, shared: dict[str, Any]) -> Any:
        from peft import LoKrConfig

        alpha: Any = float(self.alpha or self.rank)
        return LoKrConfig(
            alpha=alpha,
            decompose_factor=self.factor,
            decompose_both=self.decompose_both,
            **shared,
        )
