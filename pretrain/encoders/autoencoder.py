"""Latents of a KL autoencoder (Rombach et al., CVPR 2022), from a diffusers folder.

B rows, H x W pixels, h x w latent cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator
from torch import Tensor

from ...data.cache import Side
from ..encoder import Apply, Encoder, Rows
from ..frozen import require_loaded, whole


class Autoencoder(Encoder):
    """`latent` and `logvar`, each (channels, h, w): mean and log-variance, not scaled.

    A model trains on `latent + exp(logvar / 2) * noise`, times the autoencoder's scaling factor.
    """

    kind: ClassVar[str] = "autoencoder"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    weights: str
    """A folder that diffusers' `AutoencoderKL.save_pretrained` wrote, such as `vae/`."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights}

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # for seconds

        folder = folders["weights"]
        loaded: Any = AutoencoderKL.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        model, told = loaded
        require_loaded(told["missing_keys"])
        model = model.float().to(device).eval()

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            found = model.encode(images_BCHW.float() / 127.5 - 1).latent_dist
            return {"latent": found.mean, "logvar": found.logvar}

        return apply
