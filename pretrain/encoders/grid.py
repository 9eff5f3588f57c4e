"""Region features of a picture: the last feature map of any timm backbone, cell by cell.

Grid features as in Jiang et al. (CVPR 2020) and Pixel-BERT (Huang et al. 2020), which need no
detector. B rows, C channels, N regions, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from safetensors.torch import load_file
from torch import Tensor

from ...data.cache import Side
from ...errors import RecipeError
from ..encoder import Apply, Encoder, Rows
from ..frozen import require_loaded, whole


class Grid(Encoder):
    """`regions` (N, D), row by row from the top left."""

    kind: ClassVar[str] = "grid"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    weights: str | None = None
    """A .safetensors file or its folder; without, the backbone stays as `seed` draws it."""
    backbone: str = "resnet18"
    """Its name in timm."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**64)

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights} if self.weights else {}

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        import timm  # imports for seconds

        if not timm.is_model(self.backbone):
            near = timm.list_models(f"*{self.backbone.split('_')[0]}*")[:5]
            raise RecipeError(f"timm has no backbone {self.backbone!r}. Near it: {near}.")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model: Any = timm.create_model(self.backbone, pretrained=False, num_classes=0)
        if self.weights:
            (file,) = folders["weights"].glob("*.safetensors")
            require_loaded(model.load_state_dict(load_file(file), strict=False).missing_keys)
        model = model.float().to(device).eval()
        mean, std = (
            torch.tensor(model.default_cfg[name], device=device)[:, None, None]
            for name in ("mean", "std")
        )

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            found = model.forward_features((images_BCHW.float() / 255 - mean) / std)
            return {"regions": _regions(found, model)}

        return apply


def _regions(found: Tensor, model: Any) -> Tensor:
    """(B, N, D) of a feature map (B, D, h, w) or (B, h, w, D), or of tokens after their prefix."""
    if found.ndim == 3:
        return found[:, getattr(model, "num_prefix_tokens", 0) :]
    if found.shape[1] != model.num_features:
        return found.flatten(1, 2)
    return found.flatten(2).transpose(1, 2)
