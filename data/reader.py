"""A seekable file over an object in a bucket, for those who read it from front to back."""

import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .fetch import span
from .retry import DEFAULT, Policy
from .urls import shown


class Reader(io.RawIOBase):
    """Reads chunks of 8 MiB and fetches the next ones meanwhile; holds four at most.

    Args:
        url: the object.
        size: its bytes.
        etag: it is refused with a ReplacedError once it has another one.
        policy: how to insist.
        chunk: bytes of a range.
        ahead: chunks fetched before they are asked for.
    """

    def __init__(
        self,
        url: str,
        size: int,
        etag: str,
        *,
        policy: Policy = DEFAULT,
        chunk: int = 8 << 20,
        ahead: int = 2,
    ) -> None:
        super().__init__()
        self.url, self.size, self.etag, self.policy = url, size, etag, policy
        self._chunk, self._ahead, self._place = chunk, ahead, 0
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1 + ahead, thread_name_prefix="diptych-reader")
        self._chunks: dict[int, Future[bytes]] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{shown(self.url)}: no place {base + offset}")
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        """As many bytes as asked for, fewer only at the end."""
        left = max(0, self.size - self._place)
        left = left if size is None or size < 0 else min(left, size)
        parts: list[bytes] = []
        while left:
            number, first = divmod(self._place, self._chunk)
            part = self._get(number)[first : first + left]
            parts.append(part)
            self._place += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stop.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._chunks.clear()
        super().close()

    def _get(self, number: int) -> bytes:
        last = -(-self.size // self._chunk)
        wanted = range(number, min(number + 1 + self._ahead, last))
        for old in [old for old in self._chunks if old not in wanted and old != number - 1]:
            self._chunks.pop(old).cancel()  # the one before stays: tarfile looks back one byte
        for each in wanted:
            if each not in self._chunks:
                self._chunks[each] = self._pool.submit(self._fetch, each)
        return self._chunks[number].result()

    def _fetch(self, number: int) -> bytes:
        start = number * self._chunk
        end = min(start + self._chunk, self.size)
        return bytes(
            span(self.url, start, end, etag=self.etag, policy=self.policy, stop=self._stop)
        )
