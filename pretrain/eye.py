"""A frozen encoder of regions beside a task: features of pictures, computed as they come.

B rows, N regions, F values of a feature.
"""

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from ..config import kinds, pick
from ..errors import RecipeError
from .encoder import Encoder, Opened

REGIONS = "regions"
"""What such an encoder calls its rows, in a cache and live."""


class Eye:
    """Opened when a picture is first seen; no submodule: no engine and no checkpoint has it."""

    def __init__(self, record: Encoder) -> None:
        self.record = record
        self._opened: Opened | None = None

    def regions(self, image_BCHW: Tensor) -> Tensor:
        """(B, N, F) float32 of uint8 pixels, on their device.

        Raises:
            RecipeError: the weights are not such an encoder's.
        """
        if self._opened is None:
            self._opened = self.record.open(str(image_BCHW.device))
        with torch.no_grad():
            found = self._opened.apply(image_BCHW, ())[REGIONS]
        return found if isinstance(found, Tensor) else torch.stack(list(found))


def _pick(value: Any) -> Any:
    from . import encoders  # which import what this file does

    if value is None:
        return None
    found = pick(value, kinds(encoders), "encoder")
    if found.reads != ("image",):
        raise ValueError(f"encoder {found.kind!r} reads {', '.join(found.reads)}, not the image")
    return found


AnyEye = Annotated[Encoder | None, BeforeValidator(_pick)]
"""A field of a record that takes an encoder of pictures, or none."""


def require_shape(record: Encoder, features_BNF: Tensor, count: int, values: int) -> None:
    """Raises RecipeError where there are other regions than the recipe says."""
    if features_BNF.shape[1:] != (count, values):
        n, f = features_BNF.shape[1:]
        raise RecipeError(
            f"the encoder {record.kind!r} gives {n} regions of {f} values; the recipe says {count} "
            f"of {values}. Set model.visual.count={n} and model.visual.values={f}."
        )
