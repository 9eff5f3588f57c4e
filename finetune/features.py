"""Pictures as vectors of a named encoder: what their likeness is measured in. N pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import digest, kinds
from ..data import storage, tokens
from ..data.batch import Batch
from ..errors import RecipeError
from ..pretrain import encoders
from ..pretrain.checkpoint import open_checkpoint
from ..pretrain.encoder import Encoder, Opened, Rows, find_encoder
from ..pretrain.models.noisy_classifier import HalfUnet
from ..pretrain.rundir import RunDir
from .parts import KINDS
from .sample import Painter
from .start import trained_task

_BATCH = 64


def open_features(said: str | None, base: Painter) -> Opened:
    """The encoder that is named: `KIND=WEIGHTS[,name=value]`, or `run=URL` of a classifier.

    Unnamed it is that of the base's first stage, or for a base of pixels a network as it is drawn.

    Raises:
        RecipeError: there is none of that kind, or the run is of another model.
    """
    if said and said.startswith("run="):
        return of_run(RunDir(storage.absolute(said.removeprefix("run="))))
    if said:
        kind, *settings = said.split(",")
        return find_encoder(kind, settings, kinds(encoders)).open()
    own: Encoder | None = base.run.model.first_stage.encoder  # pyright: ignore
    return (own or encoders.Grid()).open()


def of_run(place: RunDir) -> Opened:
    """`features` (D): what a finished `noisy_classifier` tells classes by, of clean images.

    Trained to tell classes apart, it looks at what is shown rather than at its ground and light.

    Raises:
        RecipeError: the run is of another model.
        CheckpointError: nothing was kept yet.
    """
    run = place.recipe(KINDS)
    text = tokens.load(place.at("tokenizer.json"), run.model.tokens)
    kept = open_checkpoint(place.url)
    task = trained_task(run, text, kept).requires_grad_(False)
    model = task.model
    if not isinstance(model, HalfUnet):
        raise RecipeError(
            f"--features run={place.url}: a run of model {run.model.kind!r}. Name one of "
            "noisy_classifier, such as `diptych train classifier_tiny` makes."
        )
    pooled: list[Tensor] = []
    model.leave.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    tokens_L, real_L = text.encode([""])

    def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
        count = len(images_BCHW)
        rows = Batch(
            keys=("",) * count,
            draws_B=torch.zeros(count, dtype=torch.long),
            image_BCHW=images_BCHW,
            tokens_BL=tokens_L.expand(count, -1),
            real_BL=real_L.expand(count, -1),
            fields=({"cls": 0},) * count,  # asked for, and not looked at
            texts=("",) * count,
        )
        pooled.clear()
        model(task.look(rows))
        return {"features": pooled[0]}

    facts = {"recipe": kept.recipe, "step": kept.step}
    return Opened(place.name, digest(facts), apply, "cpu")


def features(encoder: Opened, images_NHWC: Tensor) -> Tensor:
    """(N, D) float32: `features` of an encoder, the mean of its `regions`, or its `latent` or
    `palette` in quarters.

    Raises:
        RecipeError: it gives nothing of these.
    """
    parts: list[Tensor] = []
    for part in images_NHWC.split(_BATCH):
        images_BCHW = np.ascontiguousarray(part.permute(0, 3, 1, 2).numpy())
        parts.append(_pooled(encoder.encode(images_BCHW, None), encoder.name))
    return torch.cat(parts)


def _pooled(arrays: dict[str, Sequence[np.ndarray]], name: str) -> Tensor:
    if "features" in arrays:
        return torch.from_numpy(np.stack(list(arrays["features"]))).float()
    if "regions" in arrays:
        return torch.stack([torch.from_numpy(each).float().mean(0) for each in arrays["regions"]])
    coarse = [name for name in ("latent", "palette") if name in arrays]
    if coarse:
        cells_NChw = torch.from_numpy(np.stack(list(arrays[coarse[0]]))).float()
        return torch.nn.functional.adaptive_avg_pool2d(cells_NChw, 2).flatten(1)
    raise RecipeError(
        f"the encoder {name} gives {', '.join(sorted(arrays))}, which are no features of pictures. "
        "Name one that gives `features`, `regions` or `latent`: grid, clip, taef2."
    )
