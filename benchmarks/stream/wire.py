"""A relay before the S3 server that counts the bytes it hands back."""

import asyncio
import threading
import time
from urllib.parse import urlsplit


class Wire:
    """Listens on a free port of loopback while it is entered."""

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
        await asyncio.gather(self._relay(reader, below, 0), self._relay(above, writer, 1))

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
