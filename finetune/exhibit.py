"""Images drawn from a published checkpoint and kept in the bucket: what an evaluation looks at.

`<run>/evaluations/<step>-<weights>-<digest>/` holds tars of a fixed number of images each, an
index, and `exhibit.json`, which says what they are of. Image n depends on the checkpoint, the
sampling and n alone; a shard is written whole or not at all, so whoever draws goes on from what
is there. B rows, C channels, H x W pixels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..config import Record, digest, plain
from ..data import decode, draws, holes, index, records, storage
from ..data.index import Manifest
from ..data.pack import Sample, tar
from ..errors import DataError
from ..pretrain.diffusion.generate import Change, cells, denoiser, generate
from ..pretrain.diffusion.sampling import Sampling
from ..pretrain.hint import Hint
from .guided import hint_as_is, hint_of, seeing
from .sample import png
from .score import Finished

NOTE = "exhibit.json"


class Hung(Record):
    """What decides the images of a gallery, with the checkpoint."""

    prompts: str
    """Folder of indexed tars whose texts are drawn, in a random order, again if they run out."""
    samples: int = Field(default=1000, ge=4)
    how: Sampling = Sampling()
    shard: int = Field(default=32, ge=1)
    """Images of a tar, drawn together."""

    @field_validator("prompts")
    @classmethod
    def _place(cls, url: str) -> str:
        return storage.absolute(url)

    @property
    def shards(self) -> int:
        """How many tars there will be."""
        return -(-self.samples // self.shard)


@dataclass(frozen=True)
class Prompt:
    """What one image is to show."""

    text: str
    record: dict[str, Any]
    """The JSON record of the sample that the text is of."""
    key: str
    """`shard/key` of that sample."""
    picture: tuple[str, int, int] | None = None
    """Where that sample's picture lies: the shard's URL, first byte, the one after the last."""


def place(found: Finished, hung: Hung) -> str:
    """The gallery's folder; its note is written if it is new."""
    manifest = index.open_manifest(hung.prompts)
    facts = {
        "checkpoint": found.checkpoint.step,
        "recipe": found.checkpoint.recipe,
        "weights": found.weights,
        "prompts digest": manifest.digest,
        **plain(hung),
    }
    short = digest(facts)[:8]
    url = found.place.at("evaluations", f"{found.checkpoint.step:08d}-{found.weights}-{short}")
    if not storage.exists(storage.join(url, NOTE)):
        storage.write(storage.join(url, NOTE), json.dumps(facts, indent=1).encode())
    return url


def prompts(hung: Hung, text: str) -> list[Prompt]:
    """The prompt of each image; `text` is `txt` or a field of the JSON record, as in a recipe.

    Samples in quarantine are left out.

    Raises:
        DataError: a sample has no such text, or there is none.
    """
    manifest = index.open_manifest(hung.prompts)
    there = [_prompt(r, members, text, s.url) for s, r, members in holes.samples(manifest)]
    if not there:
        raise DataError(f"{hung.prompts} has no sample to draw: all are in quarantine.")
    order = draws.permutation(len(there), draws.row_key("prompts", hung.how.seed)).tolist()
    return [there[order[number % len(order)]] for number in range(hung.samples)]


def draw(found: Finished, hung: Hung, asked: Sequence[Prompt], url: str, number: int) -> int:
    """Draws one shard of a gallery unless it is there; returns its images that are new."""
    out = storage.join(url, f"{number:05d}.tar")
    if storage.exists(out):
        return 0
    first = number * hung.shard
    mine = asked[first : first + hung.shard]
    texts = [prompt.text for prompt in mine]
    change = _beside(found, mine, hung.how)
    images_BHWC = generate(
        found.task, found.text, texts, hung.how, first=first, rows=2 * hung.shard, change=change
    )
    rows = zip(mine, images_BHWC, strict=True)
    storage.write(out, tar([_sample(first + at, *row) for at, row in enumerate(rows)]))
    return len(mine)


def missing(hung: Hung, url: str) -> list[int]:
    """Shards that are not there yet."""
    there = set(storage.children(url))
    return [number for number in range(hung.shards) if f"{number:05d}.tar" not in there]


def seal(hung: Hung, url: str) -> Manifest:
    """The index of a gallery whose every shard is there."""
    return index.build([storage.join(url, f"{n:05d}.tar") for n in range(hung.shards)], threads=4)


def _beside(found: Finished, asked: Sequence[Prompt], how: Sampling) -> Change:
    """Of a model that sees a hint beside its latents: each image sees that of its text's picture.

    All of a shard are drawn in one pass, both halves of guidance too.
    """
    hint = denoiser(found.task).beside
    if hint is None:
        return lambda view: view
    height, width = cells(found.task, how, 1)
    hints_BCHW = torch.cat([_hint(hint, prompt, (width, height)) for prompt in asked])
    return lambda view: seeing(view, hint, hints_BCHW)


def _hint(hint: Hint, prompt: Prompt, size: tuple[int, int]) -> Tensor:
    """(1, C, H, W) uint8, cut at the middle."""
    if prompt.picture is None:
        raise DataError(
            f"{prompt.key} has no picture, of which this model sees a hint. Give --prompts a "
            "dataset with pictures."
        )
    pixels_HWC = decode.image(storage.read(*prompt.picture))[0]
    if hint.reads == ("image",):
        return hint_of(hint, pixels_HWC, size)
    drawn_CHW = hint.drawn(pixels_HWC, prompt.record)  # annotations speak of the whole picture
    three_HWC = np.broadcast_to(drawn_CHW, (3, *drawn_CHW.shape[1:])).transpose(1, 2, 0)
    return hint_as_is(hint, np.ascontiguousarray(three_HWC), size)


def _prompt(sample: records.Record, members: dict[str, bytes], text: str, where: str) -> Prompt:
    record = json.loads(members["json"]) if "json" in members else {}
    said = members["txt"].decode() if text == "txt" and "txt" in members else record.get(text)
    if not isinstance(said, str):
        raise DataError(
            f"{storage.shown(where)}: {sample.key} has no text {text!r} to draw. Give --prompts a "
            "dataset that has."
        )
    ends = [one for name, one in sample.members.items() if decode.is_image(name)]
    picture = (where, ends[0].offset, ends[0].offset + ends[0].size) if ends else None
    return Prompt(said, record, f"{storage.name(where)}/{sample.key}", picture)


def _sample(number: int, prompt: Prompt, image_HWC: Tensor) -> Sample:
    record = {**prompt.record, "of": prompt.key}
    members = {
        "png": png(image_HWC),
        "txt": prompt.text.encode(),
        "json": json.dumps(record).encode(),
    }
    return f"{number:06d}", members
