"""Published fine-tuning of vision-language models as recipes, each from a pretrained run.

Say where it starts and where your data are:

    diptych train retrieval_base --set start_from=s3://my-bucket/runs/lxmert_base \
        --set data.train=s3://my-bucket/flickr30k --set data.tokenizer=s3://my-bucket/tokenizer.json
"""

from ..pretrain import models, objectives, visuals
from ..pretrain.presets import BERT_BASE, lxmert, single_stream
from ..pretrain.run import Data, Optim, Run
from . import heads

YES_NO = ("no", "yes")
"""Stands in for an answer vocabulary; `diptych data answers` prints that of a dataset."""


def _data(name: str, text: str = "txt") -> Data:
    """Placeholders: --set data.train=... and data.tokenizer=... name your own."""
    url = f"s3://my-bucket/{name}"
    return Data(
        train=f"{url}/train", test=f"{url}/test", tokenizer=f"{url}/tokenizer.json", text=text
    )


def caption_base() -> Run:
    """Captions as Unified VLP writes them (Zhou et al. 2020), from `vlp_base`.

    diptych train caption_base --set start_from=runs/vlp_base    8 GPUs; time: not measured

    Expected: not measured here; the paper's COCO CIDEr is 116.9 (36.5 BLEU-4). `diptych caption`
    measures yours. Differs from the paper: every next word is a target, not only masked ones.
    """
    return Run(
        name="caption_base",
        model=single_stream(7, regions=100),
        objectives=(objectives.PrefixLanguage(),),
        data=_data("coco-regions"),
        optim=Optim(lr=3e-5, betas=(0.9, 0.999), warmup_steps=1000),
        batch=512,
        epochs=30,
        checkpoint_steps=500,
    )


def caption_scst() -> Run:
    """The captioner of `caption_base` by self-critical training (Rennie et al. 2017).

    diptych data ngrams s3://my-bucket/coco-regions/train --out s3://my-bucket/ngrams.json
    diptych train caption_scst --set start_from=runs/caption_base    8 GPUs; time: not measured

    Expected: not measured here; Unified VLP's COCO CIDEr goes from 116.9 to 129.3 so. Ours: the
    rate, the steps, no dropout. Differs from the paper: the greedy baseline is that of the image's
    one caption of the row, unless `references` names a field with all.
    """
    return Run(
        name="caption_scst",
        model=single_stream(7, regions=100).model_copy(update={"dropout": 0.0}),
        objectives=(
            heads.SelfCritical(table="s3://my-bucket/ngrams.json"),
            objectives.PrefixLanguage(),
        ),
        data=_data("coco-regions"),
        optim=Optim(lr=1e-6, betas=(0.9, 0.999), warmup_steps=100),
        batch=512,
        epochs=5,
        checkpoint_steps=100,
    )


def grounding_base() -> Run:
    """Referring expressions as a choice among regions, as UNITER does it, from `uniter_base`.

    diptych train grounding_base --set start_from=runs/uniter_base    1 GPU; time: not measured

    Expected: not measured here. Needs `box` in each record, and regions found beforehand.
    """
    return Run(
        name="grounding_base",
        model=single_stream(7),
        objectives=(heads.Grounding(way="choose"),),
        data=_data("refcoco-regions"),
        optim=Optim(lr=5e-5, betas=(0.9, 0.98), warmup_steps=800),
        batch=128,
        steps=8000,
        checkpoint_steps=500,
    )


def nlvr_base() -> Run:
    """Is the statement true of the picture: NLVR (Suhr et al. 2017), from `uniter_base`.

    diptych train nlvr_base --set start_from=runs/uniter_base    1 GPU; time: not measured

    Expected: not measured here. Of one picture, as in NLVR and not as in NLVR2, whose pairs want to
    be packed side by side; `label` of each record is the truth.
    """
    return Run(
        name="nlvr_base",
        model=single_stream(7),
        objectives=(heads.VisualReasoning(),),
        data=_data("nlvr-regions"),
        optim=Optim(lr=3e-5, betas=(0.9, 0.98), warmup_steps=800),
        batch=128,
        steps=8000,
        checkpoint_steps=500,
    )


def retrieval_base() -> Run:
    """Retrieval by towers with hard negatives for the matching head (ALBEF, Li et al. 2021).

    diptych train retrieval_base --shape node8    8 GPUs; time: not measured

    Expected: not measured here; `diptych retrieve --rerank 16` measures it. Differs from the paper:
    no momentum model and no queue, patches of 16 at 224 pixels, 6 + 6 layers.
    """
    return Run(
        name="retrieval_base",
        model=models.TwoStream(
            **dict(BERT_BASE, tokens=30),
            text_depth=6,
            visual_depth=6,
            cross_depth=6,
            shared=256,
            image_size=224,
            visual=visuals.Patches(patch=16),
        ),
        objectives=(
            objectives.ImageTextMatching(hard=True),
            objectives.Contrastive(),
        ),
        data=_data("flickr30k"),
        optim=Optim(lr=1e-5, betas=(0.9, 0.999), weight_decay=0.02, decay="cosine"),
        batch=256,
        epochs=10,
        checkpoint_steps=500,
    )


def vqa_base() -> Run:
    """VQA v2 with 3129 soft answers, as LXMERT does it (Tan and Bansal 2019), from `lxmert_base`.

    diptych train vqa_base --set start_from=runs/lxmert_base --set "objectives=[{kind: vqa, soft:
    true, answers: [...]}]"    1 GPU; time: not measured

    Expected: not measured here; the paper's test-std is 72.54 %. The answers stand in for those
    that `diptych data answers` prints; 4 epochs, batch 32 and lr 5e-5 are the paper's.
    """
    return Run(
        name="vqa_base",
        model=lxmert(),
        objectives=(heads.VisualQuestion(answers=YES_NO, soft=True),),
        data=_data("vqa-v2-regions", text="question"),
        optim=Optim(lr=5e-5, betas=(0.9, 0.999), warmup_steps=1000),
        batch=32,
        epochs=4,
        checkpoint_steps=1000,
    )


def vqa_rad() -> Run:
    """VQA-RAD, 315 radiographs with questions by clinicians (Lau et al. 2018), small and on CPUs.

    python scripts/vqa_rad.py
    diptych train .diptych/vqa-rad/vqa_rad.yaml --shape one
    diptych evaluate vqa_rad --by answer_type
    1 CPU core, 35 minutes

    Expected: 69.6 % of the test questions, 68.1 to 70.7 % with the seeds 0 to 2 (closed 77.2 %,
    open 58.1 %); 49.2 to 51.4 % with another question's image. The script writes this recipe with
    all answers of the training questions; those here stand in for them. Words and layers begin as
    those of all-MiniLM-L6-v2.
    """
    return Run(
        name="vqa_rad",
        model=models.SingleStream(
            width=384,
            heads=12,
            depth=6,
            order="post",
            tokens=32,
            dropout=0.1,
            image_size=128,
            visual=visuals.Patches(patch=32),
            packed=True,  # questions have 9 tokens of 32
        ),
        objectives=(heads.VisualQuestion(answers=YES_NO),),
        data=_data("vqa-rad", text="question"),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup_steps=100),
        batch=64,
        epochs=20,
        checkpoint_steps=100,
    )
