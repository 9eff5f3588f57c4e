"""Ranges from web servers of all manners, over real TLS."""

import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from faults import proxied

from diptych.data import check, fetch, index, pack, preview, storage, stream
from diptych.data.retry import Policy, counters
from diptych.errors import ReplacedError, ShardError, StorageError

CERTIFICATE = Path(__file__).with_name("localhost.pem")
BODY = bytes(range(256)) * 400
QUICK = Policy(pause_s=0.01, longest_pause_s=0.02, deadline_s=5.0)


class Web(BaseHTTPRequestHandler):
    """Each path is another manner of server."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    etag = '"one"'
    wrong = 0
    tars: ClassVar[dict[str, bytes]] = {}
    """By the last part of their path, signature and all."""

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        manner = self.path.strip("/").partition("/")[0].partition("?")[0]
        getattr(self, manner)()

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def ranges(self, body: bytes = BODY, shift: int = 0, **headers: str) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last or len(body)) + 1, len(body))
        if start >= len(body):
            return self.answer(416, Content_Range=f"bytes */{len(body)}")
        said = f"bytes {start + shift}-{end - 1 + shift}/{len(body)}"
        self.answer(206, body[start:end], Content_Range=said, **headers)

    def tagged(self) -> None:
        self.ranges(ETag=type(self).etag)

    def signed(self) -> None:
        tar = type(self).tars.get(self.path.removeprefix("/signed/"))
        self.answer(403) if tar is None else self.ranges(tar, ETag=type(self).etag)

    def dated(self) -> None:
        self.ranges(Last_Modified="Mon, 23 Nov 2026 06:00:00 GMT")

    def empty(self) -> None:
        self.ranges(b"")

    def whole(self) -> None:
        self.answer(200, BODY)

    def chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(BODY), 1000):
            piece = BODY[start : start + 1000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def shifted(self) -> None:
        type(self).wrong += 1
        self.ranges(shift=1 if type(self).wrong <= 2 else 0)

    def elsewhere(self) -> None:
        self.answer(302, Location="/tagged/x")

    def plain(self) -> None:
        self.answer(302, Location="http://127.0.0.1/x")

    def around(self) -> None:
        self.answer(302, Location="/around")

    def secret(self) -> None:
        self.answer(403)

    def gone(self) -> None:
        self.answer(404, b"<html>nothing here</html>")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    httpd.daemon_threads = True
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield f"https://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def web(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(CERTIFICATE))
    storage.forget_filesystems()
    yield server
    storage.forget_filesystems()


@pytest.mark.parametrize("manner", ["tagged", "dated", "whole", "chunked", "elsewhere", "shifted"])
def test_bytes_are_right_whatever_the_server_does(web: str, manner: str) -> None:
    url = f"{web}/{manner}/shard.tar?signature=abc"
    for start, end in ((0, len(BODY)), (0, 1), (77, 70_000), (len(BODY) - 1, len(BODY))):
        assert fetch.span(url, start, end, policy=QUICK) == BODY[start:end]
    assert storage.read(url) == BODY
    size, etag = storage.stat(url)
    assert size == len(BODY)
    assert fetch.span(url, 5, 50, etag=etag, policy=QUICK) == BODY[5:50]
    assert storage.exists(url)
    with storage.open_read(url) as file:
        assert file.read() == BODY
    with pytest.raises(StorageError, match="2 bytes came for the range"):
        fetch.span(url, len(BODY) - 2, len(BODY) + 5, policy=QUICK)
    with pytest.raises(StorageError, match="0 bytes came for the range"):
        fetch.span(url, len(BODY) + 2, len(BODY) + 5, policy=QUICK)


def test_an_empty_file(web: str) -> None:
    assert storage.stat(f"{web}/empty")[0] == 0
    assert storage.read(f"{web}/empty") == b""


def test_another_etag_is_a_replaced_object(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{web}/tagged/x"
    _, etag = storage.stat(url)
    monkeypatch.setattr(Web, "etag", 'W/"one"')
    assert fetch.span(url, 0, 9, etag=etag) == BODY[:9]
    monkeypatch.setattr(Web, "etag", '"two"')
    with pytest.raises(ReplacedError, match="its etag was one, it is two now"):
        fetch.span(url, 0, 9, etag=etag)


def test_a_clear_no_is_told_once_and_without_the_signature(web: str) -> None:
    for manner, said in (
        ("gone", "not there. Check the name."),
        ("secret", "permission denied"),
        ("plain", "redirects to http://, which is refused"),
        ("around", "more than 5 redirects"),
    ):
        url = f"{web}/{manner}/x.tar?signature=canary"
        before = counters.now()["retries"]
        with pytest.raises(StorageError, match=said) as caught:
            fetch.span(url, 0, 9)
        assert "canary" not in str(caught.value)
        assert counters.now()["retries"] == before
    assert not storage.exists(f"{web}/gone/x")


def test_a_signature_is_asked_with_and_shown_nowhere(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (pack.tar([(key, {"jpg": b"none", "txt": b"x"})]) for key in "ab")
    names = ("0.tar?sig=one/canary", "1.tar?sig=two/canary/", "cut.tar?canary", "empty.tar?canary")
    tars = dict(zip(names, (one, two, one[:1200], pack.tar([])), strict=True))
    monkeypatch.setattr(Web, "tars", tars)
    urls = [f"{web}/signed/{name}" for name in names]
    samples = list(stream(urls[:2]))
    assert [(sample["__key__"], sample["__url__"]) for sample in samples] == [
        ("a", urls[0]),
        ("b", urls[1]),
    ]
    for url, said in ((urls[2], "end-of-archive"), (urls[3], "holds no samples")):
        with pytest.raises(ShardError, match=said) as caught:
            index.build([url], str(tmp_path / "none"))
        assert "canary" not in str(caught.value) and "tar?…" in str(caught.value)
    with pytest.raises(ShardError, match=r"two shards are called '0\.tar'"):
        index.build([urls[0], f"{urls[0]}-again"], str(tmp_path / "none"))
    manifest = index.build(urls[:2], str(tmp_path / "index"))
    there = sorted(path.name for path in (tmp_path / "index").iterdir())
    assert there == sorted(
        ["manifest.json", *(f"{n}.tar{end}" for n in (0, 1) for end in (".json", ".jsonl.gz"))]
    )
    found = check.check(manifest)
    assert found.reasons == {"cannot be decoded": 2}
    tars[names[0]], tars[names[1]] = two, two[:2048] + bytes(10240)
    more = [sentence for _, sentence in check.check(manifest).faults]
    told = preview.page(manifest) + str(found.faults) + str(more)
    assert "canary" not in told and "0.tar?…: a.jpg cannot be decoded" in told
    assert f"Not known: {web}/signed/skipped.jsonl: permission denied" in told


def test_a_server_without_ranges_is_not_read_to_far_behind(web: str) -> None:
    with pytest.raises(StorageError, match="knows no ranges"):
        fetch.span(f"{web}/whole", 1 << 30, (1 << 30) + 9)


def test_an_unknown_certificate_is_refused(server: str) -> None:
    with pytest.raises(StorageError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch.span(f"{server}/tagged", 0, 9)


class Tunnel(BaseHTTPRequestHandler):
    """A proxy as firewalls have one: it connects, and passes on what it cannot read."""

    asked: list[tuple[str, str | None]]

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_CONNECT(self) -> None:
        self.asked.append((self.path, self.headers["Proxy-Authorization"]))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            pair = {self.connection: there, there: self.connection}
            while True:
                for each in select.select(list(pair), [], [], 10)[0]:
                    data = each.recv(1 << 16)
                    if not data:
                        return
                    pair[each].sendall(data)


@contextmanager
def tunnel() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (Tunnel,), {"asked": asked})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{httpd.server_address[1]}", asked
    httpd.shutdown()
    httpd.server_close()


def test_a_proxy_of_the_environment_is_used(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tunnel() as (proxy, asked):
        monkeypatch.setenv("https_proxy", f"http://me:it%40@{proxy}")
        monkeypatch.setenv("no_proxy", "")
        storage.forget_filesystems()
        assert fetch.span(f"{web}/tagged", 3, 9) == BODY[3:9]
        assert asked == [(web.removeprefix("https://"), "Basic bWU6aXRA")]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        storage.forget_filesystems()
        assert fetch.span(f"{web}/tagged", 3, 9) == BODY[3:9]
        assert len(asked) == 1
        storage.forget_filesystems()


def test_a_proxy_between_us_and_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(f"{bucket}/proxied", BODY)
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as (proxy, url):
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "")
        storage.forget_filesystems()
        assert fetch.span(f"{bucket}/proxied", 3, 9, policy=Policy(hedge=False)) == BODY[3:9]
        assert proxy.seen == {"GET": 1}
    monkeypatch.undo()
    storage.forget_filesystems()
