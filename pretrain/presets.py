"""Published vision-language pretraining as recipes: sizes and settings of the papers.

Every docstring says in what the recipe differs from the paper. Region features come from members
`features.npy` and `boxes.npy` of each sample (docs/vision-language.md); say where your data are:

    diptych train uniter_base --set data.train=s3://my-bucket/regions \
        --set data.tokenizer=s3://my-bucket/bert/tokenizer.json --set text_from=./bert-base-uncased
"""

from typing import Any

from . import models, objectives, visuals
from .recipes import EASY
from .run import Data, Optim, Run

BERT_BASE: dict[str, Any] = {"width": 768, "heads": 12, "dropout": 0.1, "tokens": 20}
"""Of every layer, as Devlin et al. 2019 have it; a text of 20 tokens, as LXMERT and UNITER cut."""

OBJECTS, CLASSES = 36, 1600
"""Regions of an image, and classes of the detector that found them (Anderson et al. 2018)."""


def _data(name: str) -> Data:
    """Placeholders: --set data.train=... and data.tokenizer=... name your own."""
    url = f"s3://my-bucket/{name}"
    return Data(train=f"{url}/train", test=f"{url}/test", tokenizer=f"{url}/tokenizer.json")


def single_stream(geometry: Any, regions: int = OBJECTS, **more: Any) -> models.SingleStream:
    """BERT-base over words and regions found beforehand."""
    visual = visuals.Regions(count=regions, geometry=geometry)
    return models.SingleStream(**BERT_BASE, depth=12, order="post", visual=visual, **more)


def lxmert() -> models.TwoStream:
    """9 layers of words, 5 of regions, 5 where they meet with one set of cross weights."""
    return models.TwoStream(
        **BERT_BASE,
        text_depth=9,
        visual_depth=5,
        cross_depth=5,
        visual=visuals.Regions(count=OBJECTS, geometry=4),
    )


def lxmert_base() -> Run:
    """LXMERT (Tan and Bansal 2019): MLM, matching, masked features, in two streams.

    diptych train lxmert_base --shape node8       1 node of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 72.5 %. Differs from the
    paper: no loss of attributes and of question answering; one masked-region loss, of features;
    20 epochs, batch 256, lr 1e-4 are the paper's.
    """
    return Run(
        name="lxmert_base",
        model=lxmert(),
        objectives=(
            objectives.ImageTextMatching(negatives=0.5),
            objectives.MaskedRegion(rate=0.15),
            objectives.MaskedLanguage(rate=0.15),
        ),
        data=_data("vg-coco-regions"),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup_steps=5000),
        batch=256,
        epochs=20,
        checkpoint_steps=2000,
    )


def pixelbert_r50() -> Run:
    """Pixel-BERT with ResNet-50 (Huang et al. 2020): MLM and matching over 100 random pixels.

    diptych train pixelbert_r50 --shape node8     8 nodes of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 71.42 %. Differs from
    the paper: group norms instead of batch norms, squares of 640 pixels instead of 800 to 1333,
    cells of 32 pixels instead of 64, AdamW for the network as well.
    """
    visual = visuals.Cnn(network="resnet50_gn", stride=32, sample=100)
    return Run(
        name="pixelbert_r50",
        model=models.SingleStream(
            **BERT_BASE, depth=12, order="post", image_size=640, visual=visual
        ),
        objectives=(
            objectives.ImageTextMatching(negatives=0.5),
            objectives.MaskedLanguage(rate=0.15),
        ),
        data=_data("vg-coco"),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup_steps=2000),
        batch=4096,
        epochs=40,
        checkpoint_steps=1000,
    )


def uniter_base() -> Run:
    """UNITER (Chen et al. 2020): MLM, masked regions, matching, words moved onto regions.

    diptych train uniter_base --shape node8       2 nodes of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 72.46 %. Differs from the
    paper: all objectives on every batch instead of one in turn, one masked-region loss (KL to the
    detector's classes, from `teacher.npy`) instead of two, at most 36 regions instead of 100.
    """
    return Run(
        name="uniter_base",
        model=single_stream(7),
        objectives=(
            objectives.ImageTextMatching(negatives=0.5),
            objectives.MaskedRegion(rate=0.15, form="distribution", classes=CLASSES),
            objectives.MaskedLanguage(rate=0.15),
            objectives.WordRegionAlignment(weight=0.1),
        ),
        data=_data("vg-coco-regions"),
        optim=Optim(lr=5e-5, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=10_000),
        batch=1024,
        steps=200_000,
        checkpoint_steps=2000,
    )


def vilbert_base() -> Run:
    """ViLBERT (Lu et al. 2019): two streams, 6 cross layers with weights of their own each way.

    diptych train vilbert_base --shape node8      1 node of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 70.92 %. Differs from the
    paper: regions are brought from 1024 to 768 before their head, the image's part of a pair is its
    mean region instead of a first one of the whole image, boxes have 7 numbers instead of 5.
    """
    model = models.TwoStream(
        **dict(BERT_BASE, tokens=36),
        text_depth=6,
        visual_depth=0,
        cross_depth=6,
        tied=False,
        visual_width=1024,
        visual_heads=8,
        pair="product",
        visual=visuals.Regions(count=OBJECTS, geometry=7),
    )
    return Run(
        name="vilbert_base",
        model=model,
        objectives=(
            objectives.ImageTextMatching(negatives=0.5),
            objectives.MaskedRegion(rate=0.15, form="distribution", classes=CLASSES),
            objectives.MaskedLanguage(rate=0.15),
        ),
        data=_data("conceptual-regions"),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup_steps=5000),
        batch=512,
        epochs=10,
        checkpoint_steps=2000,
    )


def visualbert_base() -> Run:
    """VisualBERT (Li et al. 2019): MLM and matching of sentence and image in one stream.

    diptych train visualbert_base --shape node8   1 node of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 71.00 %. Differs from the
    paper: the text is one caption instead of two, the first of them always the image's own.
    """
    return Run(
        name="visualbert_base",
        model=single_stream(0),
        objectives=(
            objectives.ImageTextMatching(negatives=0.5),
            objectives.MaskedLanguage(rate=0.15),
        ),
        data=_data("coco-regions"),
        optim=Optim(lr=5e-5, betas=(0.9, 0.999), warmup_steps=2000),
        batch=256,
        epochs=10,
        checkpoint_steps=1000,
    )


def vlbert_base() -> Run:
    """VL-BERT (Su et al. 2020): MLM and masked classes of regions; no matching.

    diptych train vlbert_base --shape node8       2 nodes of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 72.22 % (large). Differs
    from the paper: the detector stays as it is, no text-only batches, and the whole image, which
    each word gets, is the mean of its regions.
    """
    return Run(
        name="vlbert_base",
        model=single_stream(4, whole=True),
        objectives=(
            objectives.MaskedRegion(rate=0.15, form="classes", classes=CLASSES),
            objectives.MaskedLanguage(rate=0.15),
        ),
        data=_data("conceptual-regions"),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup_steps=8000),
        batch=256,
        epochs=10,
        checkpoint_steps=2000,
    )


def vlp_base() -> Run:
    """Unified VLP (Zhou et al. 2020): one transformer that reads both ways, or writes captions.

    diptych train vlp_base --shape node8          1 node of 8 GPUs; time: not measured

    Expected: not measured here; the paper's fine-tuned VQA v2 test-std is 70.7 %. Of four rows
    three are read from left to right, the others both ways, masked words everywhere; batch 64 x 8,
    lr 1e-4 and 30 epochs are the paper's. Differs from the paper: its regions also get the
    detector's class probabilities.
    """
    return Run(
        name="vlp_base",
        model=single_stream(7, regions=100),
        objectives=(objectives.MaskedLanguage(rate=0.15, seq2seq=0.75),),
        data=_data("conceptual-regions"),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup_steps=10_000),
        batch=512,
        epochs=30,
        checkpoint_steps=2000,
    )


def vlp_tiny() -> Run:
    """The whole of `vlp_easy` made so small that a continuous-integration job trains it.

    diptych train vlp_tiny --shape one            1 CPU core; time: not measured

    Expected: not measured; it shows that things run, not that they learn.
    """
    return Run(
        name="vlp_tiny",
        model=models.Vlp(width=32, depth=1, heads=2, tokens=16, grid=4, stem=8),
        objectives=(
            objectives.ImageTextMatching(negatives=0.4),
            objectives.MaskedRegion(share=0.2),
            objectives.MaskedLanguage(rate=0.3),
        ),
        data=Data(train=f"{EASY}/train", test=f"{EASY}/test", tokenizer=f"{EASY}/tokenizer.json"),
        optim=Optim(lr=3e-3, warmup_steps=10),
        batch=32,
        steps=60,
        checkpoint_steps=20,
    )
