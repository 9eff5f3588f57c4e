"""A table of n-grams: in how many images' captions each occurs, for CIDEr-D as a reward.

JSON: {"images": 2, "having": {"red circle": 1, ...}}, n = 1 to 4, of the PTB tokeniser's words.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from ..data import storage
from ..data.holes import samples
from ..data.index import Manifest
from ..errors import DataError
from .metrics.cider import CiderD, weights
from .metrics.ngrams import Ngrams
from .metrics.ptb import tokenize

_IMAGES = ("jpg", "jpeg", "png", "webp")


def count(captions: Iterable[Sequence[str]]) -> CiderD:
    """The weights of the captions of many images, as text.

    Raises:
        DataError: of fewer than two images, among which no n-gram is rarer than another.
    """
    found = weights([tokenize(text) for text in texts] for texts in captions)
    if found.images < 2:
        raise DataError(
            f"Captions of {found.images} images weigh no n-gram. Give those of the training data."
        )
    return found


def captions(manifest: Manifest, field: str | None = None) -> list[list[str]]:
    """The captions of every picture of a dataset; the same bytes are the same picture.

    Samples in quarantine are left out.

    Args:
        manifest: the dataset; its shards are read once.
        field: of the record, with the list of captions; by default the `.txt` members.

    Raises:
        DataError: a sample has no caption there.
    """
    by_picture: defaultdict[bytes, list[str]] = defaultdict(list)
    for shard, record, members in samples(manifest):
        picture = next((members[e] for e in _IMAGES if e in members), record.key.encode())
        texts = _texts(members, field, f"{storage.shown(shard.url)}/{record.key}")
        known = by_picture[blake2b(picture, digest_size=16).digest()]
        known.extend(text for text in texts if text not in known)
    return list(by_picture.values())


def written(table: CiderD) -> bytes:
    """The table as a file."""
    having = {" ".join(gram): images for gram, images in sorted(table.having.items())}
    return json.dumps({"images": table.images, "having": having}, ensure_ascii=False).encode()


def read(url: str) -> CiderD:
    """The table that a file holds.

    Raises:
        DataError: it is no such file.
    """
    try:
        found: Any = json.loads(storage.read(url))
        having = Ngrams({tuple(gram.split(" ")): int(n) for gram, n in found["having"].items()})
        return CiderD(int(found["images"]), having)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DataError(
            f"{url} is no table of n-grams ({type(err).__name__}: {err}). Make one with `diptych "
            "data ngrams`."
        ) from err


def _texts(members: Mapping[str, bytes], field: str | None, where: str) -> list[str]:
    try:
        if field is None:
            return [members["txt"].decode()]
        given: Any = json.loads(members["json"])[field]
        texts = [given] if isinstance(given, str) else [str(text) for text in given]
    except (KeyError, ValueError, TypeError) as err:
        place = f"the field {field!r} of its record" if field else "a .txt member"
        raise DataError(f"{where} has no captions in {place}. Name where they are.") from err
    return texts
