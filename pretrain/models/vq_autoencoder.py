"""A vector-quantised autoencoder (VQGAN, Esser et al., CVPR 2021).

B rows, C channels, H x W pixels, h x w cells of a latent, V codes.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..autoencoding import Autoencoding, Decoded, Seat
from ..objective import View, Words


class VqAutoencoder(Autoencoding):
    """diffusers' `VQModel`: each cell of a latent becomes the nearest of a book of codes."""

    kind: ClassVar[str] = "vq_autoencoder"
    latent_channels: int = Field(default=3, ge=1)
    codes: int = Field(default=256, ge=2)
    codebook: float = Field(default=1.0, ge=0)
    """What the codebook's loss counts beside the mean error over pixel values."""
    commitment: float = Field(default=0.25, ge=0)
    """Share of the codebook's loss that draws latents to their codes, beside codes to latents."""

    def build(self, words: Words) -> "VqNet":
        return VqNet(self)


class VqNet(nn.Module):
    """view -> Decoded."""

    def __init__(self, spec: VqAutoencoder) -> None:
        from diffusers.models.autoencoders.vq_model import VQModel  # for seconds

        super().__init__()
        made: Any = VQModel(num_vq_embeddings=spec.codes, **spec.settings())
        self.net, self.spec, self._seat = made, spec, Seat(made)

    @property
    def kept(self) -> tuple[nn.Parameter, ...]:
        """Parameters that are used outside the module that they belong to."""
        return (self.net.quantize.embedding.weight,)

    def forward(self, view: View) -> Decoded:
        latent_BChw = self.net.encode(view.image_BCHW).latents
        code_BChw = self._nearest(latent_BChw)
        error_B = (code_BChw - latent_BChw.detach()).float().pow(2).flatten(1).mean(1)
        stray_B = (code_BChw.detach() - latent_BChw).float().pow(2).flatten(1).mean(1)
        through = latent_BChw + (code_BChw - latent_BChw).detach()
        image = self.net.decode(through, force_not_quantize=True).sample
        bound_B = error_B + self.spec.commitment * stray_B
        return Decoded(view, image, self._seat.take(), bound_B, self.spec.codebook)

    def _nearest(self, latent_BChw: Tensor) -> Tensor:
        """The nearest code of each cell; its gradient goes to the code."""
        codes_VC = self.net.quantize.embedding.weight
        flat = latent_BChw.movedim(1, -1).flatten(0, 2)
        with torch.no_grad():
            index = torch.cdist(flat.float(), codes_VC.float()).argmin(1)
        rows, _, height, width = latent_BChw.shape
        return F.embedding(index, codes_VC).view(rows, height, width, -1).movedim(-1, 1)
