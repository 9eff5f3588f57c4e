"""A relay before the S3 server that counts the bytes it hands back."""

import asyncio
import threading
from urllib.parse import urlsplit


class Wire:
    """Listens on a free port of loopback while it is entered; `received` only grows."""

    def __init__(self, endpoint: str) -> None:
        self._host, self._port = urlsplit(endpoint).hostname, urlsplit(endpoint).port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.received = 0
        """Bytes that the server has sent through, headers included."""
        self.url = ""

    def __enter__(self) -> "Wire":
        self._thread.start()
        start = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._relay(reader, below, 0), self._relay(above, writer, 1))

    async def _relay(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: int
    ) -> None:
        try:
            while data := await source.read(1 << 18):
                self.received += counted * len(data)
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return  # the arm has what it wanted and has ended
        finally:
            sink.close()
