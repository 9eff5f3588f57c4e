"""LoHa (Hyeon-Woo et al., ICLR 2022): the product, number by number, of two LoRAs."""

from typing import Any, ClassVar

from ..tuner import Tuner


class Loha(Tuner):
    """W x + (alpha / r) (B A * D C) x, with D = 0 at first."""

    kind: ClassVar[str] = "loha"

    def config(self, shared: dict[str, Any]) -> Any:
        from peft import LoHaConfig

        alpha: Any = float(self.alpha or self.rank)
        return LoHaConfig(alpha=alpha, **shared)
