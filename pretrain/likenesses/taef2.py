"""Features of TAEF2's encoder, of which 2.7 MB are all there is to have (MIT)."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator
from safetensors.torch import load_file
from torch import Tensor, nn

from ..encoders.taef2 import layers
from ..frozen import whole
from ..likeness import Eye, Likeness


class Taef2(Likeness):
    """What its stages end with, at 1/1, 1/2, 1/4 and 1/8 of the size."""

    kind: ClassVar[str] = "taef2"
    weights: str
    """`taef2_encoder.safetensors`."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights}

    def build(self, folders: Mapping[str, Path]) -> Eye:
        (file,) = folders["weights"].glob("*.safetensors")
        model = layers()
        model.load_state_dict(load_file(file))
        model = model.float()

        def features(image_BCHW: Tensor) -> list[Tensor]:
            x, found = image_BCHW / 2 + 0.5, list[Tensor]()
            parts = list(model)[:-1]
            for number, part in enumerate(parts):
                x = part(x)
                after = parts[number + 1] if number + 1 < len(parts) else None
                if after is None or (isinstance(after, nn.Conv2d) and number):
                    found.append(x)
            return found

        return Eye(model, features)
