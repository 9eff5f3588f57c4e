"""Feature maps of any convolutional network of timm: VGG16's are those that LPIPS looks at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from safetensors import safe_open
from torch import Tensor

from ...errors import RecipeError
from ..frozen import require_loaded, whole
from ..likeness import Eye, Likeness


class Timm(Likeness):
    """Normalised as its weights want it; the first maps, one of each size."""

    kind: ClassVar[str] = "timm"
    network: str = "vgg16.tv_in1k"
    """Name of a network of timm, with the tag of its weights."""
    weights: str | None = None
    """Its `model.safetensors`, of which only the layers for features are read; else the hub's
    repository `timm/NETWORK`, fetched once by every machine."""
    maps: int = Field(default=5, ge=1)
    """How many; the network may have fewer."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights} if self.weights else {}

    def build(self, folders: Mapping[str, Path]) -> Eye:
        import timm  # for seconds

        if self.network.partition(".")[0] not in timm.list_models():
            raise RecipeError(
                f"timm has no network {self.network!r}. `timm.list_models()` lists them."
            )
        local = [str(file) for folder in folders.values() for file in folder.glob("*.safetensors")]
        file = local[0] if local else self._fetched()
        with torch.device("meta"):
            wanted = timm.create_model(self.network, num_classes=0).state_dict()
        with safe_open(file, "pt") as there:  # timm itself would leave what is missing at random
            names = set(there.keys())
        require_loaded(name for name in wanted if name not in names)
        told = {"file": file, "hf_hub_id": None, "url": "", "custom_load": False}
        model: Any = timm.create_model(
            self.network, pretrained=True, features_only=True, pretrained_cfg_overlay=told
        )
        config = model.default_cfg
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))

        def features(image_BCHW: Tensor) -> list[Tensor]:
            device = image_BCHW.device
            x = (image_BCHW / 2 + 0.5 - mean.to(device)) / std.to(device)
            return list(model(x))[: self.maps]

        return Eye(model.float(), features)

    def _fetched(self) -> str:
        """The hub's file, from the local cache where it is there.

        Raises:
            RecipeError: the hub cannot be reached, or has no such weights.
        """
        from huggingface_hub import hf_hub_download

        try:
            return hf_hub_download(f"timm/{self.network}", "model.safetensors")
        except Exception as err:  # each of its layers has errors of its own
            raise RecipeError(
                f"the hub gave no timm/{self.network}: {' '.join(str(err).split())[:200]} Name a "
                "file of its weights: likeness.weights=model.safetensors."
            ) from err
