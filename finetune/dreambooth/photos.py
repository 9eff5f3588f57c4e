"""A person's pictures as a dataset: a plain folder, or tars, packed with one text for all.

A mask beside a picture, `photo.mask.png` or `masks/photo.png`, white where the subject is, goes
with it as `mask.npy`.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...config import digest
from ...data import decode, index, storage
from ...data.index import Manifest
from ...data.items import Item, Members, Unreadable
from ...data.pack import SKIPPED, Shape, given, pack_items
from ...data.pictures import Fit, ready
from ...data.records import scan
from ...data.sources.files import Folder
from ...data.sources.tables import Columns
from ...errors import DataError

_LEAST, _MOST = 2, 1000
_TOLD = 5
_MASK = re.compile(r"(^|/)masks/|\.mask\.(png|jpe?g|webp)$", re.IGNORECASE)
_LONGEST = 1024


def packed(
    source: str, out: str, text: str, *, subject: bool = True, only: str = "", masks: bool = False
) -> Manifest:
    """Packs pictures of a subject, or of its class, as one dataset; the same is kept if there.

    Args:
        source: a folder of pictures, or of tars, or one tar.
        out: a folder for the tars.
        text: every picture's caption.
        subject: these are the subject; else others of its class.
        only: of tars, the beginning of the keys to take, such as `dog2/`.
        masks: every picture of a subject must have a mask, which comes with it; one of the class
            gets a mask of its whole.

    Raises:
        DataError: no pictures, one alone, far too many, one that is unreadable (all are named), or
            one without its mask, or with a mask of other proportions.
    """
    items = [_titled(item, text, source, subject, masks) for item in _items(source, only)]
    _counted(items, source, only, subject)
    meaning = {"text": text, "masks": masks, "stamps": digest({i.key: i.stamp for i in items})}
    place = storage.join(out, digest(meaning))
    try:
        found = pack_items(
            items,
            place,
            Shape(samples=_MOST, skips=0),
            change=lambda members: _ready(members),
            meaning=meaning,
        )
    except DataError as err:
        raise _named(source, storage.join(place, SKIPPED)) or err from err
    return index.build(found.urls)


def _counted(items: Sequence[Item], source: str, only: str, subject: bool) -> None:
    if not items:
        what = "3 to 30 pictures of one subject" if subject else "pictures of the class"
        raise DataError(
            f"{source} has no pictures (jpg, png or webp){f' below {only!r}' if only else ''}. "
            f"Name a folder of {what}."
        )
    if subject and len(items) > _MOST:
        raise DataError(
            f"{source} has {len(items)} pictures; a subject is learned from 3 to 30. "
            "Name its own folder, or take part of the tars by their keys: --only dog2/."
        )
    if subject and len(items) < _LEAST:
        raise DataError(
            f"{source} has one picture, {items[0].name}; a subject is learned from 3 to 30, and 2 "
            "are needed to tell how alike its own pictures are. Add more."
        )


def _named(source: str, listed: str) -> DataError | None:
    """What is wrong with which pictures; None where packing failed for another reason."""
    if not storage.exists(listed):
        return None
    rows = [json.loads(line) for line in storage.read(listed).decode().splitlines()]
    if not rows:
        return None
    told = [f"{row['input']} ({row['reason']}: {row['detail']})" for row in rows[:_TOLD]]
    more = f", and {len(rows) - _TOLD} more in {listed}" if len(rows) > _TOLD else ""
    return DataError(
        f"{source}: {len(rows)} files cannot be learned from: {', '.join(told)}{more}. Convert "
        "them to JPEG, PNG or WebP, mend them, or take them out of the folder."
    )


def _items(source: str, only: str) -> Iterator[Item]:
    if source.endswith(".tar") or _has_tars(source):
        yield from _of_tars(source, only)
        return
    if not storage.is_local(source):
        raise DataError(f"{source}: pictures in a bucket are read from tars; pack them first.")
    path = storage.local_path(source)
    if not path.is_dir():
        raise DataError(f"{source} is no folder. Name one with 3 to 30 pictures of one subject.")
    yield from (item for item in Folder(path, Columns()) if not _MASK.search(item.name))


def _has_tars(source: str) -> bool:
    """Whether a folder has tars, and no pictures beside them."""
    names = storage.children(source)
    pictures = any(decode.is_image(name.lower()) for name in names)
    return any(name.endswith(".tar") for name in names) and not pictures


def _of_tars(source: str, only: str) -> Iterator[Item]:
    urls = [source] if source.endswith(".tar") else storage.expand([f"{source}/*.tar"])
    for url in urls:
        with storage.open_read(url) as file, storage.explained(url):
            for record, blobs in scan(file, shard=url):
                images = [name for name in record.members if decode.is_image(name)]
                if images and record.key.removeprefix("./").startswith(only):
                    members = {"image": blobs[images[0]]}
                    members |= {n: b for n, b in blobs.items() if n == "mask.npy"}
                    item = given((record.key, {"image": members["image"]}))
                    yield replace(item, load=lambda members=members: dict(members))


def _titled(item: Item, text: str, source: str, subject: bool, masks: bool) -> Item:
    """The input with its caption, and its mask where one is wanted."""

    def load() -> Members:
        members = item.load()
        found: Members = {"image": members["image"], "txt": text.encode()}
        found["json"] = json.dumps({"subject": subject}).encode()
        if masks and subject:
            found["mask"] = members.get("mask.npy") or _mask_of(source, item.name)
        elif masks:
            found["mask"] = _npy(np.full((1, 1), 255, np.uint8))
        return found

    return replace(item, load=load)


def _mask_of(source: str, name: str) -> bytes:
    """The bytes of a picture's mask.

    Raises:
        Unreadable: there is none.
    """
    home = storage.local_path(source)
    stem = Path(name).with_suffix("")
    for place in (
        f"{stem}.mask.png",
        f"masks/{stem.name}.png",
        f"{stem.parent}/masks/{stem.name}.png",
    ):
        if (home / place).is_file():
            return (home / place).read_bytes()
    raise Unreadable("no mask", f"{name}: put {stem.name}.mask.png beside it")


def _ready(members: Members) -> Members:
    mask = members.pop("mask", None)
    found = ready(members, Fit(longest=_LONGEST))
    if mask is None:
        return found
    blob = next(data for name, data in found.items() if decode.is_image(name))
    size = decode.image(blob)[1]
    return {**found, "mask.npy": _as_array(mask, size)}


def _as_array(mask: bytes, size: tuple[int, int]) -> bytes:
    """An .npy file (H, W) uint8 of a mask, as large as its picture.

    Raises:
        Unreadable: it is no mask, shows nothing, or has other proportions than its picture.
    """
    pixels = _mask_pixels(mask)
    (down, across), (width, height) = pixels.shape, size
    # proportions may differ by what rounding to whole pixels costs the smaller of the two
    if abs(width * down - height * across) > max(width, height, across, down):
        told = f"{across} x {down} pixels where its picture has {width} x {height}"
        raise Unreadable("mask of other proportions", told)
    if not pixels.any():
        raise Unreadable("empty mask", "it is black all over; white is where the subject is")
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    return _npy(np.asarray(resized, dtype=np.uint8))


def _mask_pixels(mask: bytes) -> np.ndarray:
    """(H, W) uint8."""
    try:
        if not mask.startswith(b"\x93NUMPY"):
            return np.asarray(Image.fromarray(decode.image(mask)[0]).convert("L"))
        pixels = decode.array(mask)
    except (OSError, ValueError) as err:
        raise Unreadable("damaged mask", str(err)) from err
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        told = f"mask.npy is {pixels.dtype} of shape {pixels.shape}; uint8 (height, width) is asked"
        raise Unreadable("no mask", told)
    return pixels


def _npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()
