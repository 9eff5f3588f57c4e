"""A vector-quantised autoencoder (Esser et al., CVPR 2021) from a diffusers folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from ...errors import RecipeError
from ..first_stage import FirstStage, Moments, Stage
from ..frozen import require_loaded, whole


class Vq(FirstStage):
    """diffusers' `VQModel`; latents are those before the codebook, as in latent diffusion."""

    kind: ClassVar[str] = "vq"
    weights: str
    """A folder that diffusers' `VQModel.save_pretrained` wrote, such as `vqvae/`; or a run that
    trained one."""
    latent_channels: int = Field(default=3, ge=1)
    downsampling: int = Field(default=4, ge=1)
    """Pixels a side of a latent's cell: 2 for each level after the first."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights}

    @property
    def channels(self) -> int:
        return self.latent_channels

    @property
    def factor(self) -> int:
        return self.downsampling

    def build(self, folders: Mapping[str, Path]) -> Stage:
        from diffusers.models.autoencoders.vq_model import VQModel  # for seconds

        loaded: Any = VQModel.from_pretrained(
            str(folders["weights"]),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
        model, told = loaded
        require_loaded(told["missing_keys"])
        found = model.config
        shape = (found.latent_channels, 2 ** (len(found.block_out_channels) - 1))
        if shape != (self.channels, self.factor):
            raise RecipeError(
                f"{self.weights} has {shape[0]} latent channels at 1/{shape[1]}; the recipe says "
                f"{self.channels} at 1/{self.factor}. Set latent_channels={shape[0]} and "
                f"downsampling={shape[1]}."
            )
        model = model.float()
        return Stage(
            (model,),
            lambda image: Moments(model.encode(image).latents),
            lambda latent: model.decode(latent).sample,
            self.factor_or(found.scaling_factor),
        )
