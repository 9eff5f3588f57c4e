"""Named pretraining recipes: functions that return a frozen record. YAML files do as well."""

from . import models, objectives
from .run import Data, Optim, Run

EASY = "s3://diptych-demo/easy-vqa"
"""Where `diptych demo` puts easy-VQA; any other copy: --set data.train=... and so on."""


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
