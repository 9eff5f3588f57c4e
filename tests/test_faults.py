"""Bytes stay right on the bad days of a bucket; a real S3 server behind a proxy that misbehaves."""

import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from faults import KINDS, FaultProxy, proxied

from diptych.data import fetch, retry, storage
from diptych.data.retry import Policy, counters
from diptych.errors import ReplacedError, StorageError

SEEN = [kind for kind in KINDS if kind != "flip"]
QUICK = Policy(
    deadline_s=60.0,
    silence_s=1.0,
    pause_s=0.01,
    longest_pause_s=0.05,
    hedge_after_s=0.2,
    hedge_cold_s=0.3,
)
ALONE = Policy(hedge=False)
"""For tests that count requests."""
SOURCE = random.Random(3).randbytes(200_001)


@pytest.fixture(scope="module")
def source(bucket: str) -> str:
    """The URL of an object that holds SOURCE."""
    storage.write(f"{bucket}/faults/source", SOURCE)
    return f"{bucket}/faults/source"


@pytest.fixture
def proxy(source: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that everything goes through until the test is over."""
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as (proxy, url), monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        storage.forget_filesystems()
        fetch.span(source, 0, 1)  # so that no test's time goes into making clients
        proxy.faults("")
        yield proxy
    storage.forget_filesystems()


def spans(url: str, count: int, policy: Policy = QUICK) -> None:
    """Reads `count` random ranges with four threads and compares them with the source."""
    drawn = random.Random(count)
    places = [sorted(drawn.sample(range(len(SOURCE) + 1), 2)) for _ in range(count)]

    def right(place: list[int]) -> bool:
        return fetch.span(url, *place, policy=policy) == SOURCE[slice(*place)]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, places))


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize(("share", "count"), [(0.01, 150), (0.1, 60)])
def test_bytes_are_those_of_the_source(
    proxy: FaultProxy, source: str, kind: str, share: float, count: int
) -> None:
    proxy.faults(kind, share=share)
    spans(source, count)
    assert proxy.seen[kind], "the test has met no fault"


@pytest.mark.parametrize("kind", SEEN)
def test_an_outage_is_waited_for(proxy: FaultProxy, source: str, kind: str) -> None:
    proxy.faults(kind, first=9)
    before = counters.now()
    spans(source, 3)
    after = counters.now()
    assert proxy.seen[kind] == 9
    again = ("retries", "hedges")
    assert sum(after[name] - before[name] for name in again) >= 9
    assert after["requests"] - before["requests"] == 3 + sum(
        after[name] - before[name] for name in again
    )


@pytest.mark.parametrize("kind", ["slowdown", "error", "busy", "reset", "short"])
def test_what_does_not_pass_is_an_error_at_the_deadline(
    proxy: FaultProxy, source: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults(kind, share=1.0)
    pauses = iter([0.01, 0.02, 99.0])  # the last one would pass the deadline
    monkeypatch.setattr(retry, "_jitter", SimpleNamespace(uniform=lambda low, high: next(pauses)))
    with pytest.raises(StorageError) as caught:
        fetch.span(source, 5, 5000, policy=Policy(deadline_s=60.0, hedge=False))
    assert f"{source} [5, 5000): given up after 3 attempts in" in str(caught.value)
    cause = {"slowdown": "503 SlowDown", "error": "500 InternalError", "short": "2497 of 4995"}
    assert cause.get(kind, "") in str(caught.value)


def test_a_hang_ends_at_the_deadline_too(proxy: FaultProxy, source: str) -> None:
    proxy.faults("hang", share=1.0)
    with pytest.raises(StorageError, match=r"given up after 1 attempts"):
        fetch.span(source, 0, 10, policy=Policy(deadline_s=0.5, silence_s=60.0))


def test_a_second_request_ends_a_hang(proxy: FaultProxy, source: str) -> None:
    proxy.faults("hang", first=1)
    before = counters.now()
    policy = Policy(silence_s=60.0, hedge_cold_s=0.2, hedge_after_s=0.2)
    assert fetch.span(source, 0, 1000, policy=policy) == SOURCE[:1000]
    after = counters.now()
    assert proxy.seen == {"GET": 2, "hang": 1}
    assert (after["hedges"] - before["hedges"], after["retries"] - before["retries"]) == (1, 0)


def test_without_hedging_silence_ends_a_hang(proxy: FaultProxy, source: str) -> None:
    proxy.faults("hang", first=1)
    before = counters.now()
    policy = Policy(silence_s=0.3, hedge=False)
    assert fetch.span(source, 0, 1000, policy=policy) == SOURCE[:1000]
    after = counters.now()
    assert after["hedges"] == before["hedges"]
    assert after["retries"] > before["retries"]


def test_second_requests_are_few(proxy: FaultProxy, source: str) -> None:
    proxy.faults("hang", first=30)
    counters.__init__()
    spans(source, 20, Policy(silence_s=0.3, hedge_cold_s=0.1, hedge_after_s=0.1, pause_s=0.01))
    after = counters.now()
    assert 1 <= after["hedges"] <= 3 + 0.05 * after["requests"]
    assert after["retries"] >= 20


def test_a_flipped_bit_is_gone_the_second_time(proxy: FaultProxy, source: str) -> None:
    proxy.faults("flip", first=1)
    assert fetch.span(source, 10, 2000) != SOURCE[10:2000]
    assert fetch.span(source, 10, 2000) == SOURCE[10:2000]


@pytest.mark.parametrize("kind", ["error", "reset"])
def test_small_things_survive_too(proxy: FaultProxy, bucket: str, kind: str) -> None:
    url = f"{bucket}/faults/small/{kind}"
    storage.write(url, b"first")
    for use in (
        lambda: storage.write(url, SOURCE[:1000]),
        lambda: storage.stat(url)[0] == 1000,
        lambda: kind in storage.children(f"{bucket}/faults/small"),
        lambda: storage.exists(url),
        lambda: storage.read(url) == SOURCE[:1000],
    ):
        proxy.faults(kind, first=1, methods="GET HEAD PUT POST")
        assert use() in (True, None)


def test_whole_objects_and_files_in_order(proxy: FaultProxy, source: str, bucket: str) -> None:
    proxy.faults("truncated", share=0.3)
    assert storage.read(source) == SOURCE
    with storage.open_read(source) as file:
        file._chunk = 25_000
        assert file.read(10) == SOURCE[:10]
        assert file.seek(-7, io.SEEK_END) == len(SOURCE) - 7
        assert file.read(100) == SOURCE[-7:]
        file.seek(49_999)
        assert (file.read(1), file.read(1), file.tell()) == (
            SOURCE[49_999:50_000],
            *(SOURCE[50_000:50_001], 50_001),
        )
        file.seek(0)
        assert file.read() == SOURCE
        assert file.read(1) == b""
    storage.write(f"{bucket}/faults/empty", b"")
    assert storage.read(f"{bucket}/faults/empty") == b""
    assert storage.open_read(f"{bucket}/faults/empty").read() == b""


def test_a_read_far_behind_the_end_is_an_error(source: str) -> None:
    for start, come in ((len(SOURCE) - 2, 2), (10**9, 0)):
        with pytest.raises(StorageError, match=f"{come} bytes came for the range {start}-"):
            storage.read(source, start, start + 9)


@pytest.mark.parametrize("where", ["bucket", "disk"])
def test_a_replaced_object_is_named(bucket: str, tmp_path: Path, where: str) -> None:
    url = f"{bucket}/faults/changing" if where == "bucket" else f"file://{tmp_path}/changing"
    storage.write(url, b"0123456789")
    _, etag = storage.stat(url)
    assert fetch.span(url, 2, 5, etag=etag) == b"234"
    reader = storage.open_read(url)
    storage.write(url, b"9876543210")
    os.utime(tmp_path, (1, 1))
    for read in (
        lambda: fetch.span(url, 2, 5, etag=etag),
        lambda: storage.read(url, 2, 50, etag=etag),
    ):
        with pytest.raises(ReplacedError) as caught:
            read()
        assert url in str(caught.value)
        assert "was replaced since it was indexed" in str(caught.value)
        assert "index all shards of its dataset again" in str(caught.value)
    with reader:
        if where == "bucket":
            with pytest.raises(ReplacedError):
                reader.read()
        else:
            assert reader.read() == b"0123456789"


def test_a_clear_no_is_not_asked_again(
    proxy: FaultProxy, bucket: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, said in (
        (f"{bucket}/faults/nothing", "not there. Check the name."),
        ("s3://no-such-bucket/x", "no such bucket"),
    ):
        proxy.faults("")
        with pytest.raises(StorageError, match=said) as caught:
            fetch.span(url, 0, 10, policy=ALONE)
        assert str(caught.value).startswith(url)
        assert proxy.seen == {"GET": 1}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-5512")
    storage.forget_filesystems()
    with pytest.raises(StorageError, match="wrong secret key") as caught:
        fetch.span(source, 0, 10)
    assert "canary" not in str(caught.value)


def test_a_host_that_never_answered_is_given_up_sooner(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage.forget_filesystems()
    with pytest.raises(StorageError, match=r"refused\. Check the network.*AWS_ENDPOINT_URL"):
        fetch.span(source, 0, 10, policy=Policy(first_s=0.3))
    monkeypatch.undo()
    storage.forget_filesystems()


def test_waiting_can_be_ended(proxy: FaultProxy, source: str) -> None:
    proxy.faults("slowdown", share=1.0)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(StorageError, match="given up"):
        fetch.span(source, 0, 10, policy=Policy(pause_s=60.0, longest_pause_s=60.0), stop=stop)


def test_a_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    answers = iter([retry.Passing("busy", after_s=7.0), retry.Passing("slow"), None])

    def call(deadline: float) -> str:
        if (fault := next(answers)) is not None:
            raise fault
        return "done"

    assert retry.insist(call, what="x", host="h", policy=Policy(pause_s=0.5)) == "done"
    assert pauses[0] == 7.0
    assert 0 <= pauses[1] <= 1.0


def test_a_forked_child_has_connections_of_its_own(source: str) -> None:
    code = f"""
import os, sys
from diptych.data import fetch, storage
first = fetch.span({source!r}, 0, 100_000)
assert storage.exists({source!r})
child = os.fork()
again = [fetch.span({source!r}, n, 100_000 + n)[: 100_000 - n] == first[n:] for n in range(20)]
assert all(again) and storage.exists({source!r})
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_an_object_of_several_pieces(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket}/faults/pieces"
    monkeypatch.setattr(fetch, "_PIECE", 7)
    for content in (b"", b"0123456", b"01234567", b"0123456789" * 5):
        storage.write(url, content)
        assert storage.read(url) == content
        assert storage.read(url, 3) == content[3:]
    get, versions = fetch._get, [b"a" * 20, b"b" * 30]

    def replaced(url: str, start: int, *rest: Any) -> Any:
        if start and versions:
            storage.write(url, versions.pop())
        return get(url, start, *rest)

    monkeypatch.setattr(fetch, "_get", replaced)
    assert storage.read(url) == b"a" * 20, "of one version, whichever it is"


def test_the_rare_calls_insist_once_a_server_has_answered(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [ConnectionResetError("gone"), TimeoutError("slow"), OSError(5, "no")]
    faults[2].__cause__ = ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")

    class Flaky:
        def __init__(self, faults: list[OSError]) -> None:
            self.faults = faults

        def pipe_file(self, path: str, data: bytes) -> None:
            if self.faults:
                raise self.faults.pop()

        def ls(self, path: str, detail: bool) -> list[str]:
            self.pipe_file(path, b"")
            return ["b/x"]

    storage.forget_filesystems()
    flaky = Flaky([*faults])
    monkeypatch.setattr(storage, "_fs", lambda url: flaky)
    with pytest.raises(StorageError, match="s3://b/x: OSError"):
        storage.write("s3://b/x", b"")  # it may never answer
    flaky.faults.clear()
    storage.write("s3://b/x", b"")
    flaky.faults += faults
    storage.write("s3://b/x", b"")
    flaky.faults += faults
    assert storage.children("s3://b") == ["x"]
    assert not flaky.faults
    flaky.faults += [*faults, PermissionError("no")]
    with pytest.raises(StorageError, match="permission denied"):
        storage.write("s3://b/x", b"")
    storage.forget_filesystems()


def test_counters_count(source: str, tmp_path: Path) -> None:
    storage.write(str(tmp_path / "x"), SOURCE)
    for url in (source, str(tmp_path / "x")):
        before = counters.now()
        for start, end in ((0, 1000), (500, 501), (7, 7)):
            fetch.span(url, start, end, policy=ALONE)
        after = counters.now()
        assert {name: after[name] - before[name] for name in after} == {
            "requests": 2,
            "bytes": 1001,
            "retries": 0,
            "hedges": 0,
        }
