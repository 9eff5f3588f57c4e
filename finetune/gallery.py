"""The pictures of a test set: which samples show the same one, what is said of each, and files.

A set of captions often holds a picture once for each of its texts. Samples whose picture has the
same bytes show the same picture; a caption is then written once, and scored against all of them.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data import decode, storage
from ..data.batch import Batch
from ..data.draws import row_key
from ..data.holes import samples
from ..data.index import Manifest, Shard, entries
from ..data.records import Record
from ..data.tokens import Text
from ..data.transforms import Frame, frame
from ..errors import DataError, RunError
from ..pretrain.run import Run
from .caption import Decoder, captions
from .decode import beam
from .score import Finished, still

ROWS = 64
"""Pictures that are looked at together."""


@dataclass(frozen=True)
class Caption:
    """What was written of one picture."""

    key: str
    """`shard/key` of the first sample that shows it."""
    text: str
    references: tuple[str, ...]
    """What the test data say of it."""


def captioned(
    found: Finished,
    decoder: Decoder = beam,
    *,
    field: str | None = None,
    limit: int | None = None,
    told: Callable[[int], None] = lambda rows: None,
) -> list[Caption]:
    """A caption of every picture of the test, each once, with its references.

    Args:
        found: a run that writes captions.
        decoder: how words are chosen.
        field: of the JSON record, a text or a list of texts; by default what the run reads.
        limit: only the first so many samples.
        told: told of the samples of each batch, for a progress bar.

    Raises:
        RunError: the run writes no captions.
        DataError: a picture has no reference.
    """
    same = pictures(found.test, limit)
    texts = references(found.test, field or found.run.data.text, limit)
    seen, written = set[Hashable](), list[Caption]()
    for batch in found.batches(limit, ROWS):
        first = dict[Hashable, int]()
        for row, key in enumerate(batch.keys):
            if same[key] not in seen:
                first.setdefault(same[key], row)
        seen |= first.keys()
        if first:
            fresh = batch.pick(torch.tensor(list(first.values())))
            lines = zip(fresh.keys, captions(found.task, found.text, fresh, decoder), strict=True)
            written += [Caption(key, line, tuple(texts[same[key]])) for key, line in lines]
        told(batch.rows)
    return written


def pictures(manifest: Manifest, limit: int | None = None) -> dict[str, Hashable]:
    """What each sample's picture is known by, by `shard/key`; only the index is read.

    All samples of the shards that hold the first `limit`.
    """
    found = dict[str, Hashable]()
    for shard in _shards(manifest, limit):
        name = _label(shard)
        for entry in entries(manifest, shard):
            key = f"{name}/{entry.record.key}"
            found[key] = _picture(entry.record, key)
    return found


def references(
    manifest: Manifest, field: str, limit: int | None = None
) -> dict[Hashable, list[str]]:
    """The texts of each picture, whole, by what it is known by; the shards are read once.

    Samples in quarantine say nothing.

    Args:
        manifest: the test data.
        field: `txt`, or a field of the JSON record that holds a text or a list of texts.
        limit: only the shards that hold the first so many samples.

    Raises:
        DataError: a sample without the field.
    """
    found = defaultdict[Hashable, list[str]](list)
    for shard, record, members in samples(manifest, _shards(manifest, limit)):
        key = f"{_label(shard)}/{record.key}"
        found[_picture(record, key)] += _texts(members, field, key)
    return dict(found)


def groups(same: Mapping[str, Hashable], keys: Sequence[str]) -> torch.Tensor:
    """(N,) int64: rows of one number show the same picture; numbers count from 0 as they come."""
    numbers = dict[Hashable, int]()
    return torch.tensor([numbers.setdefault(same[key], len(numbers)) for key in keys])


def with_texts(
    test: Batch,
    text: Text,
    same: Mapping[str, Hashable],
    texts: Mapping[Hashable, Sequence[str]],
) -> Batch:
    """A row for each of the `references` of each picture of a test, a text of a picture once."""
    first = dict[Hashable, int]()
    for row, key in enumerate(test.keys):
        first.setdefault(same[key], row)
    pairs = [(row, one) for seen, row in first.items() for one in dict.fromkeys(texts[seen])]
    tokens_BL, real_BL = text.encode([one for _, one in pairs])
    whole = test.pick(torch.tensor([row for row, _ in pairs]))
    return replace(whole, tokens_BL=tokens_BL, real_BL=real_BL)


def files(paths: Sequence[str], run: Run, text: Text, texts: Sequence[str] = ()) -> Batch:
    """A batch of picture files, cut as the run's test is; `texts` beside them, or none.

    Raises:
        DataError: a file that is no picture.
        RunError: the model reads features that no picture file holds.
    """
    rows = still(run)
    if rows.arrays:
        raise RunError(
            f"This run's model reads the members {', '.join(sorted(rows.arrays))}, which a picture "
            "file does not hold. Make them with `diptych data precompute`, and use --data."
        )
    side = run.model.image_size
    wanted = Frame(width=side, height=side, **dict(rows.pixels))
    image_BCHW = torch.stack([_framed(_pixels(path, wanted), wanted) for path in paths])
    return _batch(list(paths), image_BCHW, text, texts or [""] * len(paths))


def sentence(words: str, run: Run, text: Text) -> Batch:
    """A batch of one text beside a white picture, for a model that embeds each alone."""
    side = run.model.image_size
    shape = (1, 3, side, side)
    batch = _batch([words], torch.full(shape, 255, dtype=torch.uint8), text, [words])
    return replace(batch, arrays={n: torch.zeros(1, *s) for n, s in still(run).arrays.items()})


def _batch(keys: list[str], image_BCHW: torch.Tensor, text: Text, texts: Sequence[str]) -> Batch:
    tokens_BL, real_BL = text.encode(texts)
    return Batch(
        keys=tuple(keys),
        draws_B=torch.tensor([row_key(0, 0, number) for number in range(len(keys))]),
        image_BCHW=image_BCHW,
        tokens_BL=tokens_BL,
        real_BL=real_BL,
        fields=tuple({} for _ in keys),
    )


def _pixels(path: str, wanted: Frame) -> tuple[np.ndarray, tuple[int, int]]:
    data = storage.read(path)
    try:
        return decode.image(data, fit=None if wanted.exact else wanted.fit)
    except (ValueError, OSError) as err:
        raise DataError(f"{path} is no picture that can be read: {err}.") from err


def _framed(found: tuple[np.ndarray, tuple[int, int]], wanted: Frame) -> torch.Tensor:
    pixels, size = found
    return frame(pixels, wanted, 0, size=size)[0]


def _shards(manifest: Manifest, limit: int | None) -> Iterator[Shard]:
    before = 0
    for shard in manifest.shards:
        if limit is None or before < limit:
            yield shard
        before += shard.samples


def _label(shard: Shard) -> str:
    """As `Plan.label` has it for a dataset alone."""
    return storage.name(shard.url)


def _picture(record: Record, key: str) -> Hashable:
    """Length and crc32 of its picture; without one, of its arrays; else the sample itself."""
    members = record.members
    shown = [members[e] for e in members if decode.is_image(e)][:1]
    shown = shown or [members[e] for e in sorted(members) if e.rpartition(".")[2] == "npy"]
    return tuple((member.size, member.crc32) for member in shown) or key


def _texts(members: Mapping[str, bytes], field: str, key: str) -> list[str]:
    found: Any = None
    if field == "txt":
        found = members["txt"].decode("utf-8-sig", "replace") if "txt" in members else None
    elif "json" in members:
        try:
            found = json.loads(members["json"]).get(field)
        except (ValueError, AttributeError) as err:
            raise DataError(f"{key}.json is no JSON object: {err}. Repack it.") from err
    texts = found if isinstance(found, list) else [found]
    if not texts or not all(isinstance(text, (str, int, float)) for text in texts):
        raise DataError(
            f"{key}: {field!r} holds no text of the picture. Name a field that does "
            "with --references, or `txt`."
        )
    return [str(text).strip() for text in texts]
