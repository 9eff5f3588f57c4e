"""Named pretraining recipes: functions that return a frozen record. YAML files do as well."""

from . import first_stages, models, objectives
from .diffusion.schedules import Schedule
from .ema import Ema
from .run import Data, Optim, Run

EASY = "s3://diptych-demo/easy-vqa"
"""Where `diptych demo` puts easy-VQA; any other copy: --set data.train=... and so on."""
TINY20 = ".diptych/tiny20"
"""Where `python scripts/tiny20.py` puts 20 classes of Tiny ImageNet, in latents too."""
TAEF2 = "../shared/data/taef2"
"""A folder with taef2_encoder.safetensors and taef2_decoder.safetensors."""


def easy_model() -> models.Vlp:
    """Half a million parameters, for 64-pixel images."""
    return models.Vlp(width=96, depth=3, heads=4, tokens=16, grid=4, stem=24)


def vlp_easy() -> Run:
    """MLM + MRM + ITM on easy-VQA statements.

    diptych train vlp_easy           2 workers on 2 CPU cores: about 4 minutes

    Expected on the test statements: MLM accuracy about 84 %, with shuffled images about 74 %.
    """
    return Run(
        name="vlp_easy",
        model=easy_model(),
        objectives=(
            objectives.ImageTextMatching(negatives=0.4),
            objectives.MaskedRegion(share=0.2),
            objectives.MaskedLanguage(rate=0.3),
        ),
        data=Data(
            train=f"{EASY}/train",
            test=f"{EASY}/test",
            tokenizer=f"{EASY}/tokenizer.json",
        ),
        optim=Optim(lr=1e-3, warmup_steps=50),
        batch=64,
        steps=1400,
        checkpoint_steps=200,
    )


def taef2() -> first_stages.Taef2:
    """A 64-pixel image as 32 channels of 8 x 8."""
    halves = [f"{TAEF2}/taef2_{half}.safetensors" for half in ("encoder", "decoder")]
    return first_stages.Taef2(weights=halves[0], decoder=halves[1])


def ldm_tiny() -> Run:
    """Latent diffusion on easy-VQA statements, small enough for continuous integration.

    diptych train ldm_tiny --shape one        1 CPU core: about 5 minutes

    Expected (not measured yet): the error of v on test statements falls below 60 % of the first.
    """
    return Run(
        name="ldm_tiny",
        model=models.Unet(
            first_stage=taef2(), image_size=64, channels=(32, 64), width=64, heads=4, tokens=16
        ),
        objectives=(objectives.DenoisingDiffusion(predict="v", schedule=_STABLE),),
        data=Data(
            train=f"{EASY}/train",
            test=f"{EASY}/test",
            tokenizer=f"{EASY}/tokenizer.json",
        ),
        optim=Optim(lr=1e-3, warmup_steps=50),
        ema=Ema(decay=0.99),
        batch=32,
        steps=400,
        checkpoint_steps=100,
    )


def t2i_tiny20() -> Run:
    """Class names to 64-pixel photos, in TAEF2 latents: 10,000 photos of 20 classes.

    python scripts/tiny20.py
    diptych train t2i_tiny20 --shape one      1 CPU core: about 90 minutes

    Expected (docs/LOG.md, 2026-12-01; chance is 5 %): of samples at guidance 1, 3 and 5, 36, 84 and
    92 % are what was asked for to `classifier_tiny`, which is right on 73 % of the test photos.
    """
    return Run(
        name="t2i_tiny20",
        model=models.Unet(
            first_stage=taef2(), image_size=64, channels=(80, 160), width=128, heads=4, tokens=16
        ),
        objectives=(objectives.DenoisingDiffusion(predict="v", schedule=_STABLE),),
        data=Data(
            train=f"{TINY20}/train",
            caches=(f"{TINY20}/latents",),
            test=f"{TINY20}/val",
            tokenizer=f"{TINY20}/tokenizer.json",
        ),
        optim=Optim(lr=6e-4, warmup_steps=100, decay="cosine"),
        ema=Ema(decay=0.998),
        batch=64,
        steps=4000,
        log_steps=20,
        checkpoint_steps=200,
    )


def classifier_tiny() -> Run:
    """Says which of 20 classes a noised latent is of, to guide `t2i_tiny20` (Algorithm 1).

    python scripts/tiny20.py
    diptych train classifier_tiny --shape one     1 CPU core: about 10 minutes
    diptych sample t2i_tiny20 --classifier classifier_tiny --class goldfish

    Expected (docs/LOG.md, 2026-12-01): right on 73 % of the 1,000 test photos without noise, where
    chance is 5 %.
    """
    return Run(
        name="classifier_tiny",
        model=models.NoisyClassifier(
            first_stage=taef2(), image_size=64, channels=(64, 128), heads=4, classes=_TWENTY
        ),
        objectives=(objectives.NoisedClass(schedule=_STABLE),),
        data=t2i_tiny20().data,
        optim=Optim(lr=6e-4, warmup_steps=100, weight_decay=0.05, decay="cosine"),
        ema=Ema(decay=0.998),
        batch=64,
        steps=2000,
        log_steps=20,
        checkpoint_steps=200,
    )


def ldm8_t2i() -> Run:
    """The text-to-image model of latent diffusion: 256 pixels, first stage at 1/8, its own text.

    diptych train ldm8_t2i --shape node8      64 GPUs: some 30 days

    Expected (Rombach et al. 2022; not run by us): FID 12.6 on COCO, 10 % of the captions dropped.
    """
    return Run(
        name="ldm8_t2i",
        model=models.Unet(
            first_stage=first_stages.Autoencoder(weights="vae"),
            image_size=256,
            channels=(320, 640, 1280, 1280),
            attends=(True, True, True, False),
            layers=2,
            heads=8,
            groups=32,
            width=1280,
            text_depth=32,
            tokens=77,
        ),
        objectives=(objectives.DenoisingDiffusion(schedule=_STABLE),),
        data=_LAION,
        optim=Optim(lr=1e-4, warmup_steps=10_000, decay="none"),
        ema=Ema(decay=0.9999),
        batch=680,
        steps=390_000,
        log_steps=100,
        checkpoint_steps=5_000,
    )


def sd1_shapes() -> Run:
    """The shapes of Stable Diffusion 1: 512 pixels, 64 x 64 x 4 latents, text states of 768.

    diptych train sd1_shapes --shape node8    256 GPUs: some 20 days

    Expected (not run by us): that of ldm8_t2i or better, with 10 % of the captions dropped.
    """
    return Run(
        name="sd1_shapes",
        model=models.Unet(
            first_stage=first_stages.Autoencoder(weights="vae"),
            image_size=512,
            channels=(320, 640, 1280, 1280),
            attends=(True, True, True, False),
            layers=2,
            heads=8,
            groups=32,
            width=768,
            text_depth=12,
            tokens=77,
        ),
        objectives=(objectives.DenoisingDiffusion(schedule=_STABLE),),
        data=_LAION,
        optim=Optim(lr=1e-4, warmup_steps=10_000, decay="none"),
        ema=Ema(decay=0.9999),
        batch=2048,
        steps=430_000,
        log_steps=100,
        checkpoint_steps=5_000,
    )


def dit_b() -> Run:
    """DiT-B/2 with text: 256 pixels, 32 x 32 x 4 latents in patches of 2, a rectified flow.

    diptych train dit_b --shape node8         8 GPUs: some 10 days

    Expected (not run by us): better the longer it trains, with 10 % of the captions dropped.
    """
    return Run(
        name="dit_b",
        model=models.Dit(
            first_stage=first_stages.Autoencoder(weights="vae"),
            image_size=256,
            patch=2,
            width=768,
            depth=12,
            heads=12,
            text_depth=4,
            tokens=77,
        ),
        objectives=(objectives.RectifiedFlow(),),
        data=_LAION,
        optim=Optim(lr=1e-4, warmup_steps=1_000, decay="none"),
        ema=Ema(decay=0.9999),
        batch=256,
        steps=400_000,
        log_steps=100,
        checkpoint_steps=5_000,
    )


_TWENTY = (
    *("goldfish", "bullfrog", "jellyfish", "king penguin", "golden retriever", "german shepherd"),
    *("tabby cat", "brown bear", "ladybug", "monarch", "beacon", "school bus", "teapot"),
    *("umbrella", "volleyball", "ice cream", "mushroom", "lemon", "banana", "pizza"),
)
"""Classes of Tiny ImageNet that scripts/tiny20.py packs, in the order of their numbers."""
_LAION = Data(train="s3://my-bucket/laion", tokenizer="s3://my-bucket/laion/tokenizer.json")
"""Your own pairs of image and text: --set data.train=... and so on."""
_STABLE = Schedule(shape="scaled_linear", beta_start=0.00085, beta_end=0.012)
"""Of Stable Diffusion."""
