"""LoRA (Hu et al., ICLR 2022): W x + (alpha / r) B A x, with B = 0 at first."""

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from ..tuner import Tuner


class Lora(Tuner):
    """Two matrices of low rank beside each weight."""

    kind: ClassVar[str] = "lora"
    adapts: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d, nn.Embedding)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what the matrices see."""

    def config(self, shared: dict[str, Any]) -> Any:
        from peft import LoraConfig

        alpha: Any = float(self.alpha or self.rank)
        return LoraConfig(lora_alpha=alpha, lora_dropout=self.dropout, **shared)
