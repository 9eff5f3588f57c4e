"""Named recipes of first stages: what is trained before a latent diffusion model."""

from . import likenesses, models, objectives
from .ema import Ema
from .recipes import EASY, TAEF2
from .run import Data, Optim, Run

_PHOTOS = Data(
    train="s3://my-bucket/openimages",
    test="s3://my-bucket/openimages-val",
    tokenizer="s3://my-bucket/tokenizer.json",
)
"""Placeholders; of the tokenizer nothing is read but that it is one."""


def autoencoder_tiny() -> Run:
    """A KL autoencoder on easy-VQA's pictures, small enough for continuous integration.

    diptych train autoencoder_tiny --shape one     1 CPU core: about 4 minutes

    Expected: not measured yet.

    A 64-pixel picture becomes 4 channels of 16 x 16. Then a latent run:
    --set model.first_stage="{kind: autoencoder, weights: runs/autoencoder_tiny, downsampling: 4}"
    """
    return Run(
        name="autoencoder_tiny",
        model=models.KlAutoencoder(channels=(16, 32, 32), groups=8, latent_channels=4),
        objectives=(
            objectives.Reconstruction(
                likeness=likenesses.Taef2(weights=f"{TAEF2}/taef2_encoder.safetensors"),
                likeness_weight=0.1,
                disc_width=16,
                disc_depth=2,
                disc_start=200,
            ),
        ),
        data=Data(train=f"{EASY}/train", test=f"{EASY}/test", tokenizer=f"{EASY}/tokenizer.json"),
        optim=Optim(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=20, clip=100.0),
        batch=16,
        steps=300,
        checkpoint_steps=100,
    )


def kl_f8() -> Run:
    """The KL-f8 autoencoder of latent diffusion and Stable Diffusion: 256 pixels to 32 x 32 x 4.

    diptych train kl_f8 --shape node8 --set data.train=s3://my-bucket/openimages
    8 GPUs; time: not measured

    Expected: not measured here; the paper's (Rombach et al. 2022) PSNR is 24.2, rFID 0.90.
    Differs: both networks step at once; group norm in the critic; LPIPS without calibration.
    """
    return Run(
        name="kl_f8",
        model=models.KlAutoencoder(
            channels=(128, 256, 512, 512), layers=2, latent_channels=4, image_size=256
        ),
        objectives=(objectives.Reconstruction(likeness=likenesses.Timm(), disc_start=50_001),),
        data=_PHOTOS,
        optim=_original(4.5e-6 * 96),
        ema=Ema(decay=0.9999),
        batch=96,
        steps=250_000,
        log_steps=100,
        checkpoint_steps=5_000,
    )


def vq_f4() -> Run:
    """The VQ-f4 autoencoder of latent diffusion: 256 pixels to 64 x 64 x 3, 8,192 codes.

    diptych train vq_f4 --shape node8 --set data.train=s3://my-bucket/openimages
    8 GPUs; time: not measured

    Expected: not measured here; the paper's (Rombach et al. 2022) PSNR is 27.4, rFID 0.58.
    """
    return Run(
        name="vq_f4",
        model=models.VqAutoencoder(
            channels=(128, 256, 512), layers=2, latent_channels=3, codes=8192, image_size=256
        ),
        objectives=(objectives.Reconstruction(likeness=likenesses.Timm(), disc_weight=0.75),),
        data=_PHOTOS,
        optim=_original(4.5e-6 * 64),
        ema=Ema(decay=0.9999),
        batch=64,
        steps=250_000,
        log_steps=100,
        checkpoint_steps=5_000,
    )


def _original(lr: float) -> Optim:
    """Adam as latent diffusion has it: 4.5e-6 a row, no decay, and no clipping to speak of."""
    return Optim(lr=lr, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=0, decay="none", clip=1e4)
