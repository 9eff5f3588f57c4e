"""Slices of tensors in a safetensors file: put by whoever holds them, read in ranges by anyone.

A file is an eight-byte length, a JSON header and the elements, as safetensors defines it. It is
laid out here rather than by the library so that no tensor is copied on its way to the disk.
"""

import json
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from isal.isal_zlib import crc32  # zlib's, at a quarter of its time
from torch import Tensor

from ..data import disk, storage
from ..errors import CheckpointError, StorageError

Piece = tuple[str, str, int, Tensor]
"""(parameter, kind, first element in the flattened parameter, flat fp32 tensor)."""

_CHUNK = 1 << 20
"""Elements that one crc32 covers: whoever needs a few of them reads these, not a whole tensor."""
_SPAN = 32 << 20
"""Bytes of one ranged read, about."""
_GAP = 256 << 10
"""Bytes that are read for nothing rather than asked around."""
_READS = 8


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of elements of a flattened parameter, and where its bytes are."""

    param: str
    kind: str
    offset: int
    """First element in the flattened parameter."""
    length: int
    """Elements."""
    file: str
    """Name below the step's folder."""
    start: int
    """First byte in the file."""
    crc32: int

    @property
    def end(self) -> int:
        """The element after the last one."""
        return self.offset + self.length


def put_slices(url: str, name: str, pieces: Sequence[Piece]) -> list[Slice]:
    """Writes contiguous fp32 host tensors to the file `name` below `url`; says where each lies."""
    if not pieces:
        return []
    head, first = _head(pieces), 0
    found, chunks = list[Slice](), list[memoryview]()
    for param, kind, offset, data in pieces:
        view = raw(data)
        for start in range(0, data.numel(), _CHUNK):
            length = min(_CHUNK, data.numel() - start)
            chunks.append(view[4 * start : 4 * (start + length)])
            place = len(head) + first + 4 * start
            found.append(Slice(param, kind, offset + start, length, name, place, 0))
        first += len(view)
    with ThreadPoolExecutor(1) as beside:
        sums = [beside.submit(crc32, chunk) for chunk in chunks]
        storage.put(storage.join(url, name), head, _body([piece[3] for piece in pieces]))
        return [replace(one, crc32=sum_.result()) for one, sum_ in zip(found, sums, strict=True)]


def _head(pieces: Sequence[Piece]) -> bytes:
    """What stands before the elements; filled up to whole pages, for the disk's sake."""
    head, size = {}, 0
    for param, kind, offset, data in pieces:
        place = [size, size := size + 4 * data.numel()]
        key = f"{kind}/{param}@{offset}"
        head[key] = {"dtype": "F32", "shape": [data.numel()], "data_offsets": place}
    text = json.dumps(head).encode()
    text += b" " * (-(8 + len(text)) % disk.PAGE)
    return struct.pack("<Q", len(text)) + text


def _body(tensors: Sequence[Tensor]) -> list[memoryview]:
    """The bytes of tensors, not copied; those that lie one after the other in memory as one."""
    runs: list[Tensor] = []
    for data in tensors:
        last = runs[-1] if runs else data
        if (
            runs
            and data.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
            and data.data_ptr() == last.data_ptr() + 4 * last.numel()
        ):
            runs[-1] = last.as_strided((last.numel() + data.numel(),), (1,))
        else:
            runs.append(data.view(-1))
    return [raw(run) for run in runs]


def aligned(size: int, *, pinned: bool = False) -> Tensor:
    """Host memory for `size` fp32 elements that begins at a page."""
    spare = disk.PAGE // 4
    whole = torch.empty(size + spare, pin_memory=pinned)
    skip = -whole.data_ptr() % disk.PAGE // 4
    return whole[skip : skip + size]


def raw(data: Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, not copied."""
    array: Any = data.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


@dataclass(frozen=True, slots=True)
class Want:
    """Where the elements of a slice, or some of them, are to go."""

    slice: Slice
    first: int
    """First element wanted, in the slice."""
    into: Tensor


def cover(slices: Iterable[Slice], offset: int, into: Tensor, whole: int) -> tuple[list[Want], int]:
    """Who fills `into` with the elements from `offset` on of a parameter of `whole` elements.

    `slices` are in order of offset.

    Returns (what to read, how many elements it covers before the first hole).
    """
    wants: list[Want] = []
    at, end = offset, offset + into.numel()
    for piece in slices:
        if piece.offset > at or at == end or piece.end > whole:
            break  # a hole, all that is wanted, or more than the parameter has
        if piece.end > at:
            last = min(piece.end, end)
            wants.append(Want(piece, at - piece.offset, into[at - offset : last - offset]))
            at = last
    return wants, at - offset


def read(url: str, wants: Sequence[Want]) -> None:
    """Reads slices below `url`, in few large ranges and several at once, each byte checked.

    Raises:
        CheckpointError: the bytes are not those that were written.
        StorageError: a file is missing or out of reach.
    """
    spans = list(_spans(sorted(wants, key=lambda want: (want.slice.file, want.slice.start))))
    with ThreadPoolExecutor(_READS) as pool:
        waiting: deque[tuple[list[Want], Future[bytes]]] = deque()
        for span in [*spans, *[None] * _READS]:
            if span:
                waiting.append((span, pool.submit(_fetch, url, span)))
            if waiting and (not span or len(waiting) > _READS):
                ready, data = waiting.popleft()
                _place(url, ready, memoryview(data.result()))


def _spans(wants: Sequence[Want]) -> Iterator[list[Want]]:
    span: list[Want] = []
    for want in wants:
        if span and (
            want.slice.file != span[0].slice.file
            or want.slice.start - _last(span[-1].slice) > _GAP
            or _last(want.slice) - span[0].slice.start > _SPAN
        ):
            yield span
            span = []
        span.append(want)
    if span:
        yield span


def _last(piece: Slice) -> int:
    return piece.start + 4 * piece.length


def _fetch(url: str, span: list[Want]) -> bytes:
    file, end = storage.join(url, span[0].slice.file), _last(span[-1].slice)
    try:
        return storage.read(file, span[0].slice.start, end)
    except StorageError as err:
        if storage.exists(file) and storage.stat(file)[0] >= end:
            raise
        raise CheckpointError(
            f"{file} is missing or cut short. Restore it, or delete {url}: an older checkpoint is "
            "gone on from."
        ) from err


def _place(url: str, span: list[Want], data: memoryview) -> None:
    base = span[0].slice.start
    for want in span:
        piece = want.slice
        view = data[piece.start - base : _last(piece) - base]
        if crc32(view) != piece.crc32:
            raise CheckpointError(
                f"{storage.join(url, piece.file)} is damaged at byte {piece.start}: crc32 of "
                f"{piece.kind} {piece.param}. Restore it, or delete {url}: an older checkpoint is "
                "gone on from."
            )
        wanted = view[4 * want.first : 4 * (want.first + want.into.numel())]
        want.into.copy_(torch.frombuffer(bytearray(wanted), dtype=torch.float32))
