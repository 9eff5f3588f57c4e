"""A proxy between an S3 client and its server that does what networks and buckets do on bad days.

Requests are forwarded as they come, Host header included, so that their signatures hold.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KINDS = ("slowdown", "error", "busy", "reset", "hang", "short", "truncated", "cut", "flip")
_ANSWERS = {
    "slowdown": (503, "SlowDown", {}),
    "error": (500, "InternalError", {}),
    "busy": (429, "TooManyRequests", {"Retry-After": "0"}),
}


class FaultProxy:
    """Faults on demand: of one kind, for the first so many requests and a share of the others.

    Kinds: `slowdown` 503 SlowDown; `error` 500; `busy` 429 with Retry-After; `reset` before an
    answer; `hang` no answer until the proxy closes; `short` half of the promised body; `cut` a
    reset amid the body; `truncated` half of the body with a Content-Length that fits it; `flip`
    one bit of the body is wrong.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.kind, self.share, self.first = "", 0.0, 0
        self.methods = {"GET"}
        self.served = 0
        """Bytes of bodies of objects and listings that were sent."""
        self.seen: Counter[str] = Counter()
        """Requests by method, and faults by kind."""
        self.heard: list[str] = []
        """The request lines and headers of all requests."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._random = random.Random(7)

    def faults(
        self, kind: str, *, share: float = 0.0, first: int = 0, methods: str = "GET"
    ) -> None:
        """What is wrong from now on."""
        with self._lock:
            self.kind, self.share, self.first = kind, share, first
            self.methods = set(methods.split())
            self.served = 0
            self.seen.clear()

    def fault(self, method: str) -> str:
        """The kind of fault of the next request, empty for none."""
        with self._lock:
            self.seen[method] += 1
            if not self.kind or method not in self.methods:
                return ""
            self.first -= 1
            if self.first < 0 and self._random.random() >= self.share:
                return ""
            self.seen[self.kind] += 1
            return self.kind

    def sent(self, count: int) -> None:
        """Counts bytes."""
        with self._lock:
            self.served += count


@contextmanager
def proxied(upstream: str) -> Iterator[tuple[FaultProxy, str]]:
    """Runs a proxy in front of a server; yields it and its URL."""
    proxy = FaultProxy(upstream)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        proxy.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client has left

    def _serve(self) -> None:
        self.proxy.heard.append(f"{self.requestline}\n{self.headers}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.proxy.fault(self.command)
        if kind == "reset":
            return self._reset()
        if kind == "hang":
            self.proxy.closing.wait(30)
            self.close_connection = True
            return
        if kind in _ANSWERS:
            status, code, headers = _ANSWERS[kind]
            text = f"<Error><Code>{code}</Code><Message>a bad day</Message></Error>"
            return self._answer(status, headers, text.encode(), None)
        status, headers, data = self._forward(body)
        promised = len(data) if self.command != "HEAD" else None
        if data and kind in ("short", "cut", "truncated"):
            data = data[: len(data) // 2]
            promised = len(data) if kind == "truncated" else promised
        if data and kind == "flip":
            data = bytes([data[0] ^ 4]) + data[1:]
        self._answer(status, headers, data, promised)
        if kind == "cut":
            self._reset()
        if kind == "short":
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            headers = dict(response.getheaders())
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, promised: int | None
    ) -> None:
        self.send_response_only(status)
        dropped = {"connection", "transfer-encoding"}
        if promised is not None:
            dropped.add("content-length")
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        if promised is not None:
            self.send_header("Content-Length", str(promised))
        elif self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.proxy.sent(len(data))

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
