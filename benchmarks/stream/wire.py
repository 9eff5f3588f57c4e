"""What may stand between an arm and the S3 server: a relay that counts, a proxy with faults."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from diptych.tests.faults import KINDS, FaultProxy, proxied


@contextmanager
def between(endpoint: str, what: str) -> Iterator[tuple[str, Callable[[float], int]]]:
    """Yields the URL to give to an arm, and the bytes received until a `time.monotonic()`.

    Args:
        endpoint: of the server.
        what: nothing, `count`, or `faults SHARE` for faults of all kinds at that share of requests.
    """
    if what == "count":
        with Wire(endpoint) as wire:
            yield wire.url, wire.received
    elif what:
        with proxied(endpoint) as (proxy, url):
            proxy.faults("any", share=float(what.removeprefix("faults ")))
            _any_kind(proxy)
            yield url, lambda until: proxy.served
    else:
        yield endpoint, lambda until: 0


def _any_kind(proxy: FaultProxy) -> None:
    """Draws the kind of each fault."""
    draw, one = random.Random(0), proxy.fault

    def fault(method: str) -> str:
        return one(method) and draw.choice(KINDS)

    proxy.fault = fault


class Wire:
    """A relay that counts; listens on a free port of loopback while it is entered."""

    def __init__(self, endpoint: str) -> None:
        self._host, self._port = urlsplit(endpoint).hostname, urlsplit(endpoint).port
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._listens = threading.Event()
        self._parts: list[tuple[float, int]] = []
        self.url = ""

    def __enter__(self) -> "Wire":
        self._thread.start()
        self._listens.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def received(self, until: float) -> int:
        """Bytes sent by the server until a `time.monotonic()`, headers included."""
        return sum(count for moment, count in self._parts if moment <= until)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listens.set()
        await self._over.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(self._relay(reader, below, 0), self._relay(above, writer, 1))
        except asyncio.CancelledError:
            return  # the relay is leaving; Python 3.11 would print this

    async def _relay(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: int
    ) -> None:
        try:
            while data := await source.read(1 << 18):
                self._parts.append((time.monotonic(), counted * len(data)))
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return  # the arm has what it wanted and has ended
        finally:
            sink.close()
