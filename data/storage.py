"""Bytes in a bucket or on a disk: s3://, file:// (or a plain path) and https://, nothing else.

Credentials come from the environment or the instance role, never from a URL. Bytes are read by
`fetch`; what is rarer (writing, listing) is s3fs's, and tried again by the same policy. A
filesystem is built in the process that uses it and never crosses a fork.
"""

import functools
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import braceexpand
import fsspec

from ..errors import StorageError
from . import disk, fetch
from .explain import explained as explained
from .explain import is_missing, passing, refused, sentence
from .reader import Reader
from .retry import DEFAULT, Passing, insist, memory
from .s3 import descriptions
from .upload import PART, Upload
from .urls import absolute as absolute
from .urls import is_local as is_local
from .urls import join as join
from .urls import local_path as local_path
from .urls import name as name
from .urls import parent as parent
from .urls import shown as shown

T = TypeVar("T")
_AT_ONCE = 1000
"""Keys that S3 deletes by one request."""


def expand(urls: str | list[str]) -> list[str]:
    """Every URL that brace ranges and globs stand for, sorted within each pattern.

    An https:// URL has no globs: its server lists nothing, and its `?` begins a query. Nor has the
    URL of what is called just so: `set [v1]/0.tar`.

    Raises:
        StorageError: a pattern matches nothing, or its braces do not close.
    """
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        try:
            expanded = list(braceexpand.braceexpand(pattern, escape=False))
        except ValueError as err:
            raise StorageError(
                f"{shown(pattern)!r}: its braces do not close. Write a range as {{00000..00099}}."
            ) from err
        for url in map(absolute, expanded):
            found += _glob(url) if _is_pattern(url) else [url]
    return found


def shards(urls: str | list[str]) -> list[str]:
    """Like `expand`, and a folder stands for the tars in it.

    Raises:
        StorageError: a pattern matches nothing, or a folder holds no tars.
    """
    found: list[str] = []
    for url in expand(urls):
        found += _tars(url) if _is_folder(url) else [url]
    return found


def _is_pattern(url: str) -> bool:
    if url.startswith("https://") or not re.search(r"[*?\[]", url):
        return False
    if re.search(r"[*?\[]", url.split("/", 3)[2]):  # no bucket is called so
        return True
    return not _remote(url, lambda: _fs(url).exists(_strip(url)))


def _is_folder(url: str) -> bool:
    if url.lower().endswith(".tar") or url.startswith("https://"):
        return False
    return bool(_remote(url, lambda: _fs(url).isdir(_strip(url))))


def _tars(folder: str) -> list[str]:
    names = [child for child in children(folder) if child.lower().endswith(".tar")]
    found = [join(folder, child) for child in names]
    if not found:
        raise StorageError(f"{folder}/*.tar matches nothing. Check the folder.")
    return found


def _glob(url: str) -> list[str]:
    scheme = url.partition("://")[0]
    names = sorted(map(str, _remote(url, lambda: _fs(url).glob(_strip(url)))))
    if not names:
        raise StorageError(f"{url} matches nothing. Check the bucket and the pattern.")
    return [f"{scheme}://{path}" for path in names]


def read(
    url: str, start: int | None = None, end: int | None = None, *, etag: str | None = None
) -> bytes:
    """The bytes of an object, or of its range [start, end); never fewer than asked for.

    Raises:
        StorageError: missing, denied, unreachable, or a body of the wrong length.
        ReplacedError: a range of an object that has not this etag.
    """
    if start is None or end is None:
        return fetch.whole(url)[start:end]
    return bytes(fetch.span(url, start, end, etag=etag))


def write(url: str, data: bytes) -> None:
    """Writes the whole object or none of it; a file is synced, then renamed into place.

    Raises:
        StorageError: denied, full, unreachable.
    """
    url = absolute(url)
    if is_local(url):
        with explained(url):
            _write_file(local_path(url), data)
    else:
        _remote(url, lambda: _fs(url).pipe_file(_strip(url), data))


@contextmanager
def writing(url: str) -> Iterator[Any]:
    """A file to write from its start to its end, however large; parts of 16 MiB go to a bucket.

    It is there whole when the block ends, or not at all when the block raises.

    Raises:
        StorageError: denied, full, unreachable.
    """
    url = absolute(url)
    if is_local(url):
        with explained(url), _writing_file(local_path(url)) as file:
            yield file
        return
    upload = Upload(_strip(url), lambda call: _remote(url, lambda: call(_fs(url))))
    try:
        yield upload
        upload.close()
    except BaseException:
        with suppress(StorageError):  # what went wrong first is what is told
            upload.abort()
        raise


def put(url: str, head: bytes, body: Sequence[memoryview]) -> None:
    """Writes the whole object or none of it, of parts that are too large to be copied.

    On a disk, parts that begin at a page, in memory as in the file, go past the page cache.

    Raises:
        StorageError: denied, full, unreachable.
    """
    with writing(url) as file:
        file.write(head)
        for part in body:
            if is_local(absolute(url)):
                disk.append(file, part)
                continue
            for start in range(0, len(part), PART):
                file.write(part[start : start + PART])


def create(url: str, data: bytes) -> bool:
    """Writes an object that is not there yet; False, and nothing changed, if it is.

    Of several processes that try at once one succeeds; the object's being these very bytes counts
    as success, so that a request may be tried again.

    Raises:
        StorageError: denied, full, unreachable.
    """
    url = absolute(url)
    try:
        if is_local(url):
            with explained(url), _writing_file(local_path(url), _link) as file:
                file.write(data)
        else:
            bucket, _, key = _strip(url).partition("/")
            body = {"Bucket": bucket, "Key": key, "Body": data, "IfNoneMatch": "*"}
            _remote(url, lambda: _fs(url).call_s3("put_object", **body))
    except StorageError as err:
        if isinstance(err.__cause__, FileExistsError) or refused(err):
            return read(url) == data
        raise
    return True


def _link(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a filesystem without hard links
        if path.exists():
            raise FileExistsError from None
        os.replace(part, path)


def _write_file(path: Path, data: bytes) -> None:
    with _writing_file(path) as file:
        file.write(data)


@contextmanager
def _writing_file(path: Path, put: Callable[[Path, Path], None] = os.replace) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(part, path)
    finally:
        part.unlink(missing_ok=True)


def open_read(url: str) -> Any:
    """A seekable file, read ahead in large ranges; a ReplacedError if it is replaced meanwhile."""
    url = absolute(url)
    if is_local(url):
        with explained(url):
            return open(local_path(url), "rb")
    return Reader(url, *stat(url))


def exists(url: str) -> bool:
    """Whether an object is there; a bucket that cannot be reached is an error, not a no."""
    url = absolute(url)
    if is_local(url):
        with explained(url):
            return local_path(url).is_file()
    try:
        fetch.look(url)
    except StorageError as err:
        if is_missing(err.__cause__):
            return False
        raise
    return True


def stat(url: str) -> tuple[int, str]:
    """(size in bytes, etag) of an object; a file's etag is its size and modification time."""
    return fetch.look(url)


def children(url: str) -> list[str]:
    """Names directly below a URL, sorted; none where nothing is there."""
    url = absolute(url)
    try:
        paths = _remote(url, lambda: _fs(url).ls(_strip(url), detail=False))
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return []
        raise
    return sorted({name(str(path)) for path in paths} - {name(url), ""})


def delete(url: str) -> None:
    """Removes an object and everything below a URL, whose name is never a pattern.

    Raises:
        StorageError: any of it stays.
    """
    url = absolute(url)
    if not is_local(url):
        _delete_objects(url)
        return
    try:
        _remote(url, lambda: _fs(url).rm(_strip(url), recursive=True))
    except StorageError as err:
        if not isinstance(err.__cause__, FileNotFoundError):
            raise


def _delete_objects(url: str) -> None:
    """Of s3fs itself, `rm` takes a name like run[1] for a pattern and removes those of run1."""
    bucket = _strip(url).partition("/")[0]
    found = {_strip(url), *_remote(url, lambda: _fs(url).find(_strip(url), withdirs=True))}
    # Some servers have real folders, which go after what is in them.
    keys = sorted((key for path in found if (key := path.partition("/")[2])), reverse=True)
    for first in range(0, len(keys), _AT_ONCE):
        chosen = [{"Key": key} for key in keys[first : first + _AT_ONCE]]
        body = {"Bucket": bucket, "Delete": {"Objects": chosen, "Quiet": True}}
        answer = _remote(url, lambda body=body: _fs(url).call_s3("delete_objects", **body))
        if refused := answer.get("Errors"):  # the request as a whole succeeds all the same
            one = refused[0]
            raise StorageError(
                f"s3://{bucket}/{one.get('Key')}: not deleted: {one.get('Code')}, "
                f"{one.get('Message')} ({len(refused)} of {len(chosen)} objects). Deleting wants "
                "s3:DeleteObject."
            )


def require_bucket(url: str) -> None:
    """Asks the bucket of an s3:// URL for one name, to learn early that it can be used.

    Raises:
        StorageError: no such bucket, wrong credentials, unreachable.
    """
    url = absolute(url)
    if url.startswith("s3://"):
        bucket = _strip(url).partition("/")[0]
        signer = fetch.clients().signer
        _remote(f"s3://{bucket}", lambda: signer.list_one(bucket))


def make_bucket(url: str) -> None:
    """Makes the bucket of an s3:// URL; one that is there already is left alone."""
    url = absolute(url)
    bucket = _strip(url).partition("/")[0]
    with explained(f"s3://{bucket}"):
        if not _fs(url).exists(bucket):
            _fs(url).mkdir(bucket)


def forget_filesystems() -> None:
    """Builds filesystems anew, after the environment's endpoint or keys have changed."""
    _filesystem.cache_clear()
    fetch.forget()


os.register_at_fork(after_in_child=forget_filesystems)


def _strip(url: str) -> str:
    return url if url.startswith("https://") else url.partition("://")[2]


def _fs(url: str) -> Any:
    return _filesystem(url.partition("://")[0])


@functools.cache
def _filesystem(scheme: str) -> Any:
    # One instance a process: fsspec's own cache is off so that none is inherited by a fork.
    if scheme != "s3":
        return fsspec.filesystem(scheme, skip_instance_cache=True)
    from aiobotocore.session import AioSession

    session = AioSession()
    session.register_component("data_loader", descriptions())
    return fsspec.filesystem(
        scheme, skip_instance_cache=True, use_listings_cache=False, session=session
    )


def _remote(url: str, call: Callable[[], T]) -> T:
    """What a filesystem says, asked again while its fault passes."""

    def once(deadline: float) -> T:
        try:
            return call()
        except Exception as err:
            if passing(err) and host in memory.answered:
                raise Passing(sentence(url, err)) from err
            raise

    host = "/".join(url.split("/", 3)[:3])
    with explained(url):
        return insist(once, what=shown(url), host=host, policy=DEFAULT)
