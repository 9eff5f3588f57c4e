"""Named fine-tuning recipes, and the table of all recipes there are."""

from collections.abc import Callable

from ..config import from_yaml, override, plain, unknown
from ..data import storage
from ..pretrain import presets as published
from ..pretrain import recipes as pretraining
from ..pretrain import stage_recipes as stages
from ..pretrain.run import Data, Optim, Run, parse_run
from . import adapters, clip_folder, heads, hub_folder, presets
from .foreign_recipe import complete
from .parts import KINDS
from .tuner import ATTENTION

ANSWERS = (
    *("black", "blue", "brown", "circle", "gray", "green", "no"),
    *("rectangle", "red", "teal", "triangle", "yellow", "yes"),
)


def vqa_easy() -> Run:
    """The VQA head on easy-VQA questions, from a finished `vlp_easy`.

    diptych train vqa_easy --set start_from=runs/vlp_easy    2 CPU cores: about 2 minutes

    Expected on the official test questions: 91 to 94 % right, about 85 % without start_from.
    """
    return Run(
        name="vqa_easy",
        model=pretraining.easy_model(),
        objectives=(heads.VisualQuestion(answers=ANSWERS),),
        data=Data(
            train=f"{pretraining.EASY}/train",
            test=f"{pretraining.EASY}/test",
            tokenizer=f"{pretraining.EASY}/tokenizer.json",
            text="question",
        ),
        optim=Optim(lr=1e-3, warmup_steps=50),
        batch=64,
        steps=700,
        checkpoint_steps=100,
    )


def vqa_easy_lora() -> Run:
    """As `vqa_easy`, but of the encoder LoRA alone, convolutions too, and a narrow head: 4 %.

    diptych train vqa_easy_lora --set start_from=runs/vlp_easy    2 CPU cores: about 8 minutes

    Expected on the official test questions: 95.4 and 99.5 % from two bases in 2,100 steps, where
    all weights by `vqa_easy --set steps=2100` have 99.9 % from the second.
    """
    return Run(
        name="vqa_easy_lora",
        model=pretraining.easy_model(),
        objectives=(heads.VisualQuestion(answers=ANSWERS, inner=48),),
        adapters=(
            adapters.Lora(
                rank=4,
                alpha=16,
                targets=(ATTENTION, "words", r"vision\.(convolve|project|whole)\.\d+"),
            ),
        ),
        start_from="s3://diptych-demo/runs/vlp_easy",
        data=vqa_easy().data,
        optim=Optim(lr=1.5e-3, warmup_steps=50),
        batch=64,
        steps=2100,
        checkpoint_steps=100,
    )


RECIPES: dict[str, Callable[[], Run]] = {
    "autoencoder_tiny": stages.autoencoder_tiny,
    "caption_base": presets.caption_base,
    "caption_scst": presets.caption_scst,
    "classifier_tiny": pretraining.classifier_tiny,
    "dit_b": pretraining.dit_b,
    "grounding_base": presets.grounding_base,
    "kl_f8": stages.kl_f8,
    "ldm8_t2i": pretraining.ldm8_t2i,
    "ldm_tiny": pretraining.ldm_tiny,
    "lxmert_base": published.lxmert_base,
    "nlvr_base": presets.nlvr_base,
    "pixelbert_r50": published.pixelbert_r50,
    "retrieval_base": presets.retrieval_base,
    "sd1_shapes": pretraining.sd1_shapes,
    "t2i_tiny20": pretraining.t2i_tiny20,
    "uniter_base": published.uniter_base,
    "vilbert_base": published.vilbert_base,
    "visualbert_base": published.visualbert_base,
    "vlbert_base": published.vlbert_base,
    "vlp_base": published.vlp_base,
    "vlp_easy": pretraining.vlp_easy,
    "vlp_tiny": published.vlp_tiny,
    "vq_f4": stages.vq_f4,
    "vqa_base": presets.vqa_base,
    "vqa_easy": vqa_easy,
    "vqa_easy_lora": vqa_easy_lora,
    "vqa_rad": presets.vqa_rad,
}


def find(text: str, settings: list[str]) -> Run:
    """A named recipe or a YAML file, with `path=value` settings put in.

    What it leaves out of a model that it starts from a folder of diffusers, open_clip or
    transformers is read there.

    Raises:
        RecipeError: no such recipe, or whatever is wrong with it.
    """
    if text.endswith((".yaml", ".yml")):
        values = from_yaml(storage.read(text), source=text)
    elif text in RECIPES:
        values = plain(RECIPES[text]())
    else:
        raise unknown(text, list(RECIPES), "recipe (or a .yaml file)")
    values = hub_folder.complete(clip_folder.complete(complete(override(values, settings))))
    return parse_run(values, KINDS, source=text)
