"""DoRA (Liu et al., ICML 2024): LoRA steers the direction of each row of W, a number its length."""

from typing import Any, ClassVar

from pydantic import Field

from ..tuner import Tuner


class Dora(Tuner):
    """m (W + (alpha / r) B A) / |W + (alpha / r) B A|, with B = 0 and m = |W| at first."""

    kind: ClassVar[str] = "dora"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what the matrices see."""

    def config(self, shared: dict[str, Any]) -> Any:
        from peft import LoraConfig

        alpha: Any = float(self.alpha or self.rank)
        return LoraConfig(lora_alpha=alpha, lora_dropout=self.dropout, use_dora=True, **shared)
