"""Pictures of the class by the base itself, so that it remembers what it knew (DreamBooth, 3.2).

Picture number n depends on the base, the text, the sampling and n alone; tars are written whole or
not at all, so an interrupted call goes on, and another run with the same base finds them all.
"""

import io
import json
from collections.abc import Callable

import numpy as np
from PIL import Image

from ...config import digest, plain
from ...data import index, storage
from ...data.index import Manifest
from ...data.pack import Sample, tar
from ...pretrain.checkpoint import open_checkpoint
from ...pretrain.diffusion.sampling import Sampling
from ..sample import Painter

_SHARD = 16
"""Pictures of a tar: what is lost at most by an interruption."""


def drawn(
    base: Painter,
    text: str,
    count: int,
    home: str,
    how: Sampling,
    *,
    masks: bool = False,
    told: Callable[[int], None] = lambda pictures: None,
) -> Manifest:
    """A dataset of `count` pictures of `text`, in a folder of `home` that is named by a digest.

    Args:
        base: what draws.
        text: the class prompt, each picture's caption.
        count: pictures.
        home: a folder for all such datasets.
        how: sampler, steps, guidance, seed.
        masks: give each picture a mask of its whole, where subjects have masks.
        told: told of pictures that are there.
    """
    kept = open_checkpoint(base.place.url, base.step)
    facts = {
        "run": storage.name(base.place.url),
        "recipe": kept.recipe,
        "step": base.step,
        "weights": base.weights,
        "content": kept.content,  # a model that is imported again may keep its name and recipe
        "text": text,
        "how": plain(how),
        "masks": masks,
    }
    url = storage.join(storage.absolute(home), digest(facts))
    storage.write(storage.join(url, "class.json"), json.dumps(facts, indent=1).encode())
    urls: list[str] = []
    for first in range(0, count, _SHARD):
        many = min(_SHARD, count - first)
        whole = "" if many == _SHARD else f"-{many}"  # another count makes only its own last tar
        place = storage.join(url, f"{first // _SHARD:05d}{whole}.tar")
        if not storage.exists(place):
            images_BHWC = base.draw([text] * many, how, first=first)
            samples = [
                _sample(first + n, one.numpy(), text, masks) for n, one in enumerate(images_BHWC)
            ]
            storage.write(place, tar(samples))
        urls.append(place)
        told(many)
    return index.build(urls, storage.join(url, f"first-{count}"))


def _sample(number: int, pixels: np.ndarray, text: str, masks: bool) -> Sample:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    members = {"png": file.getvalue(), "txt": text.encode()}
    members["json"] = json.dumps({"subject": False}).encode()
    if masks:
        whole = io.BytesIO()
        np.save(whole, np.full(pixels.shape[:2], 255, np.uint8), allow_pickle=False)
        members["mask.npy"] = whole.getvalue()
    return f"{number:06d}", members
