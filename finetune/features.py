"""Pictures as vectors of a named encoder: what their likeness is measured in. N pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import RecipeError
from ..pretrain.encoder import Opened

_BATCH = 64


def features(encoder: Opened, images_NHWC: Tensor) -> Tensor:
    """(N, D) float32: `features` of an encoder, the mean of its `regions`, or its `latent` or
    `palette` in quarters.

    Raises:
        RecipeError: it gives nothing of these.
    """
    parts: list[Tensor] = []
    for part in images_NHWC.split(_BATCH):
        images_BCHW = np.ascontiguousarray(part.permute(0, 3, 1, 2).numpy())
        parts.append(_pooled(encoder.encode(images_BCHW, None), encoder.name))
    return torch.cat(parts)


def _pooled(arrays: dict[str, Sequence[np.ndarray]], name: str) -> Tensor:
    if "features" in arrays:
        return torch.from_numpy(np.stack(list(arrays["features"]))).float()
    if "regions" in arrays:
        return torch.stack([torch.from_numpy(each).float().mean(0) for each in arrays["regions"]])
    coarse = [name for name in ("latent", "palette") if name in arrays]
    if coarse:
        cells_NChw = torch.from_numpy(np.stack(list(arrays[coarse[0]]))).float()
        return torch.nn.functional.adaptive_avg_pool2d(cells_NChw, 2).flatten(1)
    raise RecipeError(
        f"the encoder {name} gives {', '.join(sorted(arrays))}, which are no features of pictures. "
        "Name one that gives `features`, `regions` or `latent`: grid, clip, taef2."
    )
