"""One ranged GET over a kept connection: the least work between a socket and the caller's bytes.

http.client reads a body straight into the bytes that are returned, at less than half the CPU
time of the clients above it. What it lacks is here: kept connections, proxies, certificates,
and a reading of the answer that believes nothing it can verify.
"""

import base64
import email.utils
import functools
import http.client
import re
import select
import ssl
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, unquote, urljoin, urlsplit

from ..errors import StorageError
from .retry import Call, Passing, Policy
from .room import ROOM
from .urls import shown

_KEPT = 64
_SLICED = 64 << 20
_SAFE = "!#$%&'()*+,/:;=?@[]~"


class Refused(OSError):
    """The server said no, and will say no again."""

    def __init__(self, status: int, code: str, said: str) -> None:
        super().__init__(f"{status} {code}: {said}")
        self.status = status
        self.response = {"Error": {"Code": code}}


class Elsewhere(Exception):
    """The answer is at another place: `url` of a redirect, or the `region` of an S3 bucket."""

    def __init__(self, url: str, region: str) -> None:
        super().__init__(url, region)
        self.url, self.region = url, region


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: the bytes, and what the server said of the whole object."""

    data: memoryview
    etag: str
    """Without quotes; empty if the server has none."""
    size: int
    """Bytes of the whole object."""
    modified: str
    """Last-Modified, or empty."""


class Wire:
    """Connections to any hosts, kept between requests; safe for many threads of one process."""

    def __init__(self, bundle: Callable[[], str | None] = lambda: None) -> None:
        self._bundle = bundle
        self._proxy = functools.cache(_proxy)
        self._lock = threading.Lock()
        self._kept: defaultdict[str, list[http.client.HTTPConnection]] = defaultdict(list)
        self._tls: ssl.SSLContext | None = None

    def get(
        self,
        url: str,
        start: int,
        end: int,
        *,
        name: str,
        headers: Mapping[str, str],
        call: Call,
        policy: Policy,
    ) -> Answer:
        """The bytes [start, end) of an http(s) URL, fewer if it is shorter.

        Args:
            url: already quoted.
            name: the URL for messages.
            start: first byte.
            end: one behind the last byte.
            headers: with the Range, and signed if need be.
            call: told of the socket, so that another thread can cut it.
            policy: its time-outs.

        Raises:
            Passing: another attempt may do better.
            Refused: it will not.
            Elsewhere: a redirect.
            StorageError: its server knows no ranges and the range lies too far behind.
        """
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.netloc}"
        proxy = self._proxy(parts.scheme, parts.netloc)
        plain = proxy and parts.scheme == "http"  # such a proxy is asked by the whole URL
        target = url if plain else url.removeprefix(place) or "/"
        extra = _proxy_headers(proxy) if plain else {}
        try:
            connection = self._connection(place, proxy, policy)
        except (OSError, http.client.HTTPException) as err:
            if isinstance(err, ssl.SSLCertVerificationError):
                raise
            raise Passing(f"no connection to {place}: {err}", answered=False) from err
        response = None
        try:
            call.holds(connection.sock)
            try:
                connection.request("GET", target, headers={**headers, **extra})
                response = connection.getresponse()
                return _read(url, response, start, end, name)
            finally:
                call.holds(None)
        except Refused:
            raise
        except (OSError, http.client.HTTPException, ValueError) as err:
            said = str(err) or type(err).__name__
            raise Passing(f"{place}: {said}") from err
        finally:
            self._keep(place, connection, response)

    def _connection(self, place: str, proxy: str, policy: Policy) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                kept = self._kept[place]
                connection = kept.pop() if kept else None
            if connection is None:
                break
            if connection.sock and not _readable(connection.sock.fileno()):
                if connection.sock.gettimeout() != policy.silence_s:
                    connection.sock.settimeout(policy.silence_s)
                return connection
            connection.close()  # the server has closed its end
        connection = self._new(place, proxy, policy.connect_s)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        if connection.sock:
            connection.sock.settimeout(policy.silence_s)
        return connection

    def _new(self, place: str, proxy: str, timeout: float) -> http.client.HTTPConnection:
        scheme, _, host = place.partition("://")
        via = urlsplit(proxy).netloc.rpartition("@")[2]
        if scheme == "http":
            return http.client.HTTPConnection(via or host, timeout=timeout)
        with self._lock:
            self._tls = self._tls or self._context()
        connection = http.client.HTTPSConnection(via or host, timeout=timeout, context=self._tls)
        if via:
            connection.set_tunnel(host, headers=_proxy_headers(proxy))
        return connection

    def _context(self) -> ssl.SSLContext:
        """Certificates of the system, of botocore and of AWS_CA_BUNDLE."""
        from botocore.httpsession import get_cert_path

        context = ssl.create_default_context()
        for bundle in (get_cert_path(True), self._bundle()):
            if bundle:
                context.load_verify_locations(bundle)
        return context

    def _keep(
        self,
        place: str,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse | None,
    ) -> None:
        """Keeps a connection for the next request if this one's answer was read to its end."""
        if response and response.isclosed() and not response.will_close and connection.sock:
            with self._lock:
                if len(self._kept[place]) < _KEPT:
                    self._kept[place].append(connection)
                    return
        if response:
            response.close()
        connection.close()

    def close(self) -> None:
        """Closes the connections that wait for a request."""
        for kept in self._kept.values():
            while kept:
                kept.pop().close()


def _proxy(scheme: str, netloc: str) -> str:
    """The URL of the proxy that the environment wants for a host, or nothing."""
    proxy = urllib.request.getproxies().get(scheme, "")
    if not proxy or urllib.request.proxy_bypass(netloc.rpartition("@")[2]):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _readable(number: int) -> bool:
    poll = select.poll()  # unlike select, for file numbers above 1023 too
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))


def _read(url: str, response: http.client.HTTPResponse, start: int, end: int, name: str) -> Answer:
    if response.status == 206:
        data, size = _part(response, start, end)
    elif response.status == 200:
        data, size = _whole(response, start, end, name)
    elif response.status == 416:
        size = re.search(r"\*/(\d+)", response.getheader("Content-Range", ""))
        data, size = memoryview(b""), int(size[1]) if size else start
    else:
        _refuse(url, response)
    return Answer(
        data,
        etag=response.getheader("ETag", "").removeprefix("W/").strip('"'),
        size=size,
        modified=response.getheader("Last-Modified", ""),
    )


def _part(response: http.client.HTTPResponse, start: int, end: int) -> tuple[memoryview, int]:
    said = response.getheader("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", said.strip())
    if not match:
        raise Passing(f"no usable Content-Range: {said!r}")
    first, last = int(match[1]), int(match[2]) + 1
    size = last if match[3] == "*" else int(match[3])
    if (first, last) != (start, min(end, size)):
        raise Passing(f"another range came: {said}")
    if response.length not in (None, last - first):
        raise Passing(f"{response.length} bytes are promised for {said}")
    return _exactly(response, last - first), size


def _whole(
    response: http.client.HTTPResponse, start: int, end: int, name: str
) -> tuple[memoryview, int]:
    """The range out of a whole object: its server does not know ranges."""
    size = response.length
    if start > _SLICED:
        raise StorageError(
            f"{shown(name)}: the server knows no ranges, so {start} bytes would be read in vain. "
            "Put the shards on a server with ranges, or on a disk."
        )
    if size is None:
        data = response.read()
        return memoryview(data)[start:end], len(data)
    skip, last = min(start, size), min(end, size)
    for place in range(0, skip, 1 << 20):
        _exactly(response, min(skip - place, 1 << 20))
    return _exactly(response, max(0, last - skip)), size


def _exactly(response: http.client.HTTPResponse, count: int) -> memoryview:
    data = ROOM.lend(count).data
    filled = 0
    while filled < count and (more := response.readinto(data[filled:])):
        filled += more
    if filled != count:
        raise Passing(f"the body ended after {filled} of {count} bytes")
    return data


def _refuse(url: str, response: http.client.HTTPResponse) -> NoReturn:
    status = response.status
    body = response.read(1 << 16)
    code, region = _tag(body, "Code"), response.getheader("x-amz-bucket-region", "")
    if status in (301, 302, 303, 307, 308) or code == "AuthorizationHeaderMalformed":
        place = response.getheader("Location", "")
        raise Elsewhere(urljoin(url, place) if place else "", region or _tag(body, "Region"))
    said = f"{status} {code or response.reason}"
    if code in _PASSING or status in (408, 425, 429) or (status >= 500 and status != 501):
        raise Passing(said, after_s=_after_s(response.getheader("Retry-After", "")))
    code = code or {403: "403", 404: "NoSuchKey"}.get(status, "")
    raise Refused(status, code, _tag(body, "Message") or str(response.reason))


_PASSING = ("RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable")


def _tag(body: bytes, name: str) -> str:
    match = re.search(f"<{name}>([^<]*)</{name}>".encode(), body)
    return match[1].decode(errors="replace") if match else ""


def _after_s(said: str) -> float:
    """Seconds of a Retry-After, which is a number or a date."""
    if said.strip().isdigit():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def quoted(url: str) -> str:
    """A URL as it can be sent: without a fragment, and nothing left to quote."""
    return quote(url.partition("#")[0], safe=_SAFE + "%")
