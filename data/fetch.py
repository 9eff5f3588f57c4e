"""Exactly the bytes [start, end) of an object, from s3://, https:// or file://, whatever happens.

`span` insists through faults that pass, races requests that are late (see `retry`), verifies what
the server says of the range, and refuses an object that is not the one that was indexed. Any
number of threads may call it. Connections and credentials belong to one process: a child starts
without them.
"""

import os
import threading

from ..errors import ReplacedError, StorageError
from .explain import explained
from .retry import DEFAULT, Call, Passing, Policy, counters, insist, memory, race
from .room import ROOM
from .s3 import Signer
from .urls import absolute, shown
from .wire import Answer, Elsewhere, Refused, Wire, quoted

_HOPS = 5
_PIECE = 8 << 20


def span(
    url: str,
    start: int,
    end: int,
    *,
    etag: str | None = None,
    policy: Policy = DEFAULT,
    stop: threading.Event | None = None,
) -> memoryview:
    """The bytes [start, end) of an object: as many as asked for, or an error.

    Its memory is used again (see `room`) once no view of it is left.

    Args:
        url: s3://, https://, file:// or a path.
        start: first byte, from 0.
        end: one behind the last byte.
        etag: of the object that is meant, as `storage.stat` gives it; any if None.
        policy: deadline, time-outs and second requests.
        stop: set by another thread to end the waiting for a server that fails.

    Raises:
        StorageError: missing, denied, too short, or still failing at the deadline.
        ReplacedError: the object has another etag.
    """
    if not 0 <= start <= end:
        raise ValueError(f"{shown(url)}: no range: [{start}, {end})")
    if start == end:
        return memoryview(b"")
    url = absolute(url)
    answer = _get(url, start, end, etag, policy, stop)
    if answer.data and etag is not None and _etag(answer) != _bare(etag):
        raise _replaced(url, etag, _etag(answer))
    if len(answer.data) < end - start:
        raise StorageError(
            f"{shown(url)}: {len(answer.data)} bytes came for the range {start}-{end}. The object "
            "is shorter than its index says: index it again."
        )
    return answer.data


def whole(url: str, *, policy: Policy = DEFAULT) -> bytes:
    """All bytes of an object, in pieces of 8 MiB if it is large.

    Raises:
        StorageError: missing, denied, or still failing at the deadline.
        ReplacedError: it was overwritten between two pieces, three times.
    """
    url = absolute(url)
    if url.startswith("file://"):
        with explained(url):
            size = os.stat(url.removeprefix("file://")).st_size
            return bytes(_get(url, 0, size, None, policy, None).data)
    for last in (False, False, True):
        first = _get(url, 0, _PIECE, None, policy, None)
        parts = [first.data]
        try:
            for start in range(_PIECE, first.size, _PIECE):
                end = min(start + _PIECE, first.size)
                parts.append(span(url, start, end, etag=_etag(first), policy=policy))
        except ReplacedError:
            if last:
                raise
        else:
            break
    return b"".join(parts)


def look(url: str, *, policy: Policy = DEFAULT) -> tuple[int, str]:
    """(size, etag) of a file:// or https:// object; without etags, size and time stand for one.

    Raises:
        StorageError: missing, denied, or still failing at the deadline.
    """
    answer = _get(absolute(url), 0, 1, None, policy, None)
    return answer.size, _etag(answer)


def _get(
    url: str,
    start: int,
    end: int,
    etag: str | None,
    policy: Policy,
    stop: threading.Event | None,
) -> Answer:
    """The bytes that there are of a range."""
    with explained(url):
        if url.startswith("file://"):
            answer = _read_file(url, start, end)
            counters.add(requests=1)
        else:
            answer = _ask(url, start, end, etag, policy, stop)
    counters.add(bytes=len(answer.data))
    return answer


def _read_file(url: str, start: int, end: int) -> Answer:
    number = os.open(url.removeprefix("file://"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = max(0, min(end, os.fstat(number).st_size) - start)
        data, come = ROOM.lend(there).data, 0
        while come < there and (more := os.preadv(number, [data[come:]], start + come)):
            come += more  # in one go, but above 2 GiB
        state = os.fstat(number)  # after the bytes: a file that is being written gives itself away
    finally:
        os.close(number)
    return Answer(data[:come], etag="", size=state.st_size, modified=str(state.st_mtime))


def _ask(
    url: str,
    start: int,
    end: int,
    etag: str | None,
    policy: Policy,
    stop: threading.Event | None,
) -> Answer:
    here = clients()
    get = here.s3 if url.startswith("s3://") else here.https
    host = "/".join(url.split("/", 3)[:3])

    def attempt(call: Call) -> Answer:
        counters.add(requests=1)
        return get(url, start, end, etag, call, policy)

    def once(deadline: float) -> Answer:
        return race(attempt, host=host, size=end - start, end=deadline, policy=policy)

    what = f"{shown(url)} [{start}, {end})"
    return insist(once, what=what, host=host, policy=policy, stop=stop)


class Clients:
    """The connections and the signer of one process."""

    def __init__(self) -> None:
        self.signer = Signer()
        self.wire = Wire(self.signer.bundle)

    def s3(
        self, url: str, start: int, end: int, etag: str | None, call: Call, policy: Policy
    ) -> Answer:
        """One attempt at a range of an s3:// object."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        headers = {**_HEADERS, "Range": _range(start, end)}
        if etag is not None:
            headers["If-Match"] = f'"{_bare(etag)}"'
        for _ in range(_HOPS):
            place = self.signer.url(bucket, key)
            signed = self.signer.sign(bucket, place, headers)
            try:
                return self.wire.get(
                    place, start, end, name=url, headers=signed, call=call, policy=policy
                )
            except Elsewhere as err:
                if not self.signer.move(bucket, err.region):
                    raise Passing(f"redirected to {err.url or 'another region'}") from err
            except Refused as err:
                if err.status == 412 and etag is not None:
                    raise _replaced(url, etag, "another") from err
                raise
        raise Passing("too many redirects")

    def https(
        self, url: str, start: int, end: int, etag: str | None, call: Call, policy: Policy
    ) -> Answer:
        """One attempt at a range of an https:// object, wherever it redirects to."""
        place = quoted(url)
        headers = {**_HEADERS, "Range": _range(start, end)}
        for _ in range(_HOPS):
            try:
                return self.wire.get(
                    place, start, end, name=url, headers=headers, call=call, policy=policy
                )
            except Elsewhere as err:
                place = quoted(err.url)
                if not place.startswith("https://"):
                    scheme = place.partition(":")[0]
                    raise StorageError(
                        f"{shown(url)} redirects to {scheme}://, which is refused. "
                        "Ask for a URL that stays with https://."
                    ) from err
            except Refused as err:
                err.response["Error"]["Code"] = ""  # advice on S3's keys is of no use here
                if err.status in (401, 403):
                    raise PermissionError(str(err)) from err
                if err.status in (404, 410):
                    raise FileNotFoundError(str(err)) from err
                raise
        raise StorageError(f"{shown(url)}: more than {_HOPS} redirects. Use the URL they end at.")


_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "diptych"}
_lock = threading.Lock()
_clients: Clients | None = None


def clients() -> Clients:
    """The clients of this process, made when they are first needed."""
    global _clients
    with _lock:
        _clients = _clients or Clients()
        return _clients


def forget() -> None:
    """Makes clients anew, after the environment's endpoint or keys have changed, or a fork."""
    global _clients, _lock
    if _clients:
        _clients.wire.close()
    _clients, _lock = None, threading.Lock()
    memory.__init__()
    ROOM.__init__()


os.register_at_fork(after_in_child=forget)


def _range(start: int, end: int) -> str:
    return f"bytes={start}-{end - 1}"


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _etag(answer: Answer) -> str:
    return answer.etag or f"{answer.size}-{answer.modified}"


def _replaced(url: str, then: str, now: str) -> ReplacedError:
    return ReplacedError(
        f"{shown(url)} was replaced since it was indexed: its etag was {_bare(then)}, it is {now} "
        "now. Put the old one back, or index all shards of its dataset again: diptych data index."
    )
