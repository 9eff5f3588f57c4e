"""What a gallery is worth: held against real images in named networks, asked for what it shows.

Numbers are printed beside their floor: the same number between real images. N images, D features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.index import Manifest
from ..data.loader import Loader, Recipe
from ..data.plan import Plan
from ..data.tokens import Text
from ..errors import DataError, RecipeError
from ..pretrain.encoder import Encoder, Opened
from ..pretrain.encoders import Inception
from .export.folder import Loaded
from .heads import VisualQuestion
from .metrics import coverage, distances
from .score import Finished

_BATCH = 64


@dataclass(frozen=True)
class Network:
    """A network in whose features images are compared."""

    name: str
    opened: Opened
    standard: bool = False
    """Whether it is the Inception of FID, held against the published file."""
    words: bool = False
    """Whether it gives `text` too."""

    @property
    def names(self) -> tuple[str, str]:
        """Of its Frechet and of its kernel distance."""
        return ("fid", "kid") if self.standard else (f"frechet.{self.name}", f"kernel.{self.name}")


def network(record: Encoder, device: str = "cpu") -> Network:
    """An encoder as a judge.

    Raises:
        RecipeError: it sees no images, or its weights are not of such a model.
    """
    if "image" not in record.reads:
        raise RecipeError(f"--features {record.kind}: it sees no images. Name one that does.")
    standard = isinstance(record, Inception) and record.origin is not None
    return Network(record.kind, record.open(device), standard, "text" in record.reads)


@dataclass(frozen=True)
class Question:
    """What a classifier is asked of each image, and the field of the record that is right."""

    text: str
    field: str


@dataclass(frozen=True)
class Picture:
    """An image, (H, W, 3) uint8, with its text and JSON record."""

    pixels: np.ndarray
    text: str
    record: dict[str, Any]


def pictures(
    manifest: Manifest, text: Text, size: int, limit: int, *, shuffle: bool = False
) -> Iterator[list[Picture]]:
    """Batches of at most `limit` images of a dataset, squares of `size` pixels.

    In the order of the shards, or shuffled, which for training sets sorted by class matters.
    """
    total = min(limit, manifest.samples)
    if not total:
        raise DataError(f"{manifest.url} holds no images.")
    batch = min(_BATCH, total)
    recipe = Recipe(text="txt", image_size=size, seed=0, needs=frozenset({"image"}))
    plan = Plan(manifest, 0, batch, shuffle=shuffle)
    for step, found in Loader(plan, text, recipe, stop=-(-total // batch)):
        part = found.take(0, min(batch, total - step * batch))
        pixels = part.image_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
        texts = [text.decode(ids.tolist()) for ids in part.tokens_BL]
        yield [Picture(p, t, dict(f)) for p, t, f in zip(pixels, texts, part.fields, strict=True)]


def features(network: Network, batches: Iterator[list[Picture]]) -> tuple[Tensor, Tensor | None]:
    """(features (N, D), each image's similarity to its text (N,) where the network reads both)."""
    found: list[Tensor] = []
    alike: list[Tensor] = []
    for batch in batches:
        images = np.stack([picture.pixels for picture in batch]).transpose(0, 3, 1, 2)
        texts = [picture.text for picture in batch] if network.words else None
        arrays = network.opened.encode(np.ascontiguousarray(images), texts)
        found.append(_pooled(arrays, network.name))
        if network.words:
            text_ND = torch.from_numpy(np.stack(list(arrays["text"])))
            alike.append((found[-1] * text_ND).sum(1))
    return torch.cat(found), torch.cat(alike) if alike else None


def compare(network: Network, made_ND: Tensor, test_ND: Tensor, train_ND: Tensor) -> dict[str, Any]:
    """Distances, precision and recall against test images; copies of training images."""
    frechet, kernel = network.names
    size = min(len(made_ND), len(test_ND))
    found = distances.kernel(made_ND, test_ND)
    seen = coverage.coverage(made_ND[:size], test_ND[:size])
    near = coverage.nearest(made_ND, train_ND)
    real = coverage.nearest(test_ND, train_ND)
    return {
        frechet: distances.frechet(made_ND, test_ND),
        f"real.{frechet}": distances.frechet(train_ND[: len(made_ND)], test_ND),
        kernel: found.mean,
        f"{kernel}.std": found.std,
        f"real.{kernel}": distances.kernel(train_ND, test_ND).mean,
        f"precision.{network.name}": seen.precision,
        f"recall.{network.name}": seen.recall,
        f"copied.{network.name}": coverage.copied(made_ND, train_ND, test_ND),
        f"nearest.{network.name}": float(near.distance_N.median()),
        f"real.nearest.{network.name}": float(real.distance_N.median()),
    }


def accuracy(
    judge: Finished,
    questions: Sequence[Question],
    batches: Iterator[list[Picture]],
    told: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """Share of images of which a classifier says what their records say, by field; and of all.

    Args:
        judge: a finished run with a VQA head, trained on other real images.
        questions: asked of every image.
        batches: images with the records of what they should show.
        told: told of the rows of each batch.

    Raises:
        RecipeError: the classifier does not know an answer of a record, or a field is missing.
    """
    model = Loaded(judge.run, judge.text, judge.task)
    right: dict[str, int] = {question.field: 0 for question in questions}
    whole, count = 0, 0
    for batch in batches:
        images = [Image.fromarray(picture.pixels) for picture in batch]
        all_B = np.ones(len(batch), bool)
        for question in questions:
            wanted = [_wanted(judge, picture, question.field) for picture in batch]
            said = model.answer(images, [question.text] * len(batch))
            hits_B = np.array([a == b for a, b in zip(said, wanted, strict=True)])
            right[question.field] += int(hits_B.sum())
            all_B &= hits_B
        whole, count = whole + int(all_B.sum()), count + len(batch)
        told(len(batch))
    found = {f"accuracy.{field}": hits / count for field, hits in right.items()}
    return {**found, "accuracy.all": whole / count} if len(questions) > 1 else found


def question(said: str) -> Question:
    """A question from `text=field`.

    Raises:
        RecipeError: no `=`.
    """
    text, sep, field = said.rpartition("=")
    if not sep or not text or not field:
        raise RecipeError(f"--ask {said!r} is not QUESTION=FIELD, as 'what color is it?=color'.")
    return Question(text, field)


def _wanted(judge: Finished, picture: Picture, field: str) -> str:
    known = next(o for o in judge.run.objectives if isinstance(o, VisualQuestion))
    answers, value = known.answers, picture.record.get(field)
    if (place := known.place(str(value))) is None:
        raise RecipeError(
            f"--ask ...={field}: the record says {value!r}, which the classifier "
            f"{judge.place.name} has no answer for. It knows: {', '.join(answers[:20])}."
        )
    return answers[place]


def _pooled(arrays: dict[str, Sequence[np.ndarray]], name: str) -> Tensor:
    """One row an image: `features` themselves, regions' mean, latents in four quarters."""
    if "features" in arrays:
        return torch.from_numpy(np.stack(list(arrays["features"])))
    if "regions" in arrays:
        return torch.stack([torch.from_numpy(each).mean(0) for each in arrays["regions"]])
    if "latent" in arrays:
        latent = torch.from_numpy(np.stack(list(arrays["latent"])))
        return torch.nn.functional.adaptive_avg_pool2d(latent, 2).flatten(1)
    raise RecipeError(f"--features {name} gives {sorted(arrays)}, of which no distance is taken.")
