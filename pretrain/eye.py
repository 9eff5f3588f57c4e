"""A frozen encoder of regions beside a task: features of pictures, computed as they come.

B rows, N regions, F values of a feature.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import RecipeError
from .encoder import Encoder, Opened, picked

REGIONS, BOXES = "regions", "boxes"
"""What such an encoder calls its rows, in a cache and live."""


class Eye:
    """Opened when a picture is first seen; no submodule: no engine and no checkpoint has it."""

    def __init__(self, record: Encoder) -> None:
        self.record = record
        self._opened: Opened | None = None

    def look(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """`regions` (B, N, F), and `boxes` (B, N, 4) of a detector, float32, of uint8 pixels, on
        their device; zeros after the last region of a row.

        Raises:
            RecipeError: the weights are not such an encoder's.
        """
        if self._opened is None:
            self._opened = self.record.open(str(image_BCHW.device))
        with torch.no_grad():
            found = self._opened.apply(image_BCHW, ())
        return {name: _table(found[name]) for name in (REGIONS, BOXES) if name in found}

    def like(self, image_BCHW: Tensor, count: int, values: int) -> dict[str, Tensor]:
        """Tensors of such shapes, without asking for the weights."""
        shapes = {REGIONS: values, **({BOXES: 4} if self.record.boxed else {})}
        rows = len(image_BCHW)
        return {
            name: image_BCHW.new_empty((rows, count, width), dtype=torch.float32)
            for name, width in shapes.items()
        }


def _table(rows: Tensor | Sequence[Tensor]) -> Tensor:
    return rows if isinstance(rows, Tensor) else pad_sequence(list(rows), batch_first=True)


def _pick(value: Any) -> Any:
    if value is None:
        return None
    found = picked(value)
    if found.reads != ("image",):
        raise ValueError(f"encoder {found.kind!r} reads {', '.join(found.reads)}, not the image")
    return found


AnyEye = Annotated[Encoder | None, BeforeValidator(_pick)]
"""A field of a record that takes an encoder of pictures, or none."""


def require_shape(record: Encoder, features_BNF: Tensor, count: int, values: int) -> None:
    """Raises RecipeError where there are other regions than the recipe says."""
    n, f = features_BNF.shape[1:]
    if f != values or n > count or (n < count and not record.boxed):
        raise RecipeError(
            f"the encoder {record.kind!r} gives {n} regions of {f} values; the recipe says {count} "
            f"of {values}. Set model.visual.count={n} and model.visual.values={f}."
        )
