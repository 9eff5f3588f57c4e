"""A model of open_clip from a folder that open_clip itself saved, and encoders made of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from .encoder import Encoder
from .frozen import whole


class OfOpenClip(Encoder):
    """A record of an encoder that is a part of such a model."""

    weights: str
    """A folder with open_clip_config.json and open_clip_model.safetensors."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights}


def opened(folder: Path, device: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder with open_clip_config.json and open_clip_model.safetensors, in
    32 bits."""
    import open_clip  # imports for seconds

    name = f"local-dir:{folder}"
    made: Any = open_clip.create_model(name, device=device)
    return made.float().eval(), open_clip.get_tokenizer(name)


def pixels(model: Any, device: str) -> Callable[[Tensor], Tensor]:
    """uint8 images (B, 3, H, W) -> what the model's image tower takes of them: its own square, by
    an antialiased resize without a crop, its own mean and deviation."""
    import open_clip  # imports for seconds

    how = open_clip.get_model_preprocess_cfg(model)
    side = how["size"][0] if isinstance(how["size"], (tuple, list)) else how["size"]
    mean, std = (torch.tensor(how[n], device=device)[:, None, None] for n in ("mean", "std"))

    def seen(images_BCHW: Tensor) -> Tensor:
        resized_BCHW = F.interpolate(
            images_BCHW.float() / 255, (side, side), mode="bicubic", antialias=True
        )
        return (resized_BCHW.clamp(0, 1) - mean) / std

    return seen
