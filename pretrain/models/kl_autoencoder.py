"""A KL autoencoder, the first stage of latent diffusion (Rombach et al., CVPR 2022).

B rows, C channels, H x W pixels, h x w cells of a latent.
"""

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from ...data.draws import normal
from ..autoencoding import Autoencoding, Decoded, Seat
from ..objective import View, Words


class KlAutoencoder(Autoencoding):
    """diffusers' `AutoencoderKL`; latents are drawn of the posterior by the row's key."""

    kind: ClassVar[str] = "kl_autoencoder"
    kl: float = Field(default=1e-6, ge=0)
    """What a nat of KL counts beside the error *summed* over a row's pixel values, as in LDM."""

    def build(self, words: Words) -> "KlNet":
        return KlNet(self)


class KlNet(nn.Module):
    """view -> Decoded."""

    def __init__(self, spec: KlAutoencoder) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # for seconds

        super().__init__()
        made: Any = AutoencoderKL(**spec.settings())
        self.net, self.recompute = made, False
        self._kl, self._seat = spec.kl, Seat(made)

    def forward(self, view: View) -> Decoded:
        image_BCHW = view.image_BCHW
        if self.recompute and not self.net.is_gradient_checkpointing:
            self.net.enable_gradient_checkpointing()
        said = self.net.encode(image_BCHW).latent_dist
        mean, logvar = said.mean.float(), said.logvar.float()
        draws_B = view.batch.draws_B
        noise = normal(draws_B, "posterior", mean[0].numel()).view_as(mean).to(mean)
        latent = mean + (logvar / 2).exp() * noise
        image = self.net.decode(latent.to(image_BCHW.dtype)).sample
        nats_B = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        return Decoded(view, image, self._seat.take(), nats_B, self._kl / image_BCHW[0].numel())
