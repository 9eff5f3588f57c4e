"""Bytes in a bucket or on a disk: s3://, file:// (or a plain path) and https://, nothing else.

Every other scheme is refused, so no URL can ever start a program. Credentials come from the
environment or the instance role, never from a URL. A filesystem is built in the process that
uses it and never crosses a fork.
"""

import errno
import functools
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import braceexpand
import fsspec

from ..errors import StorageError

_SCHEMES = ("s3", "file", "https")


def absolute(url: str) -> str:
    """The URL with its scheme; a plain path becomes an absolute file:// URL.

    Raises:
        StorageError: a scheme other than s3, file and https.
    """
    if re.match(r"^[a-zA-Z][\w+.-]*:", url):
        scheme, _, rest = url.partition(":")
        if scheme not in _SCHEMES or not rest.startswith("//"):
            raise StorageError(
                f"{url!r}: the scheme {scheme!r} is refused. Use s3://, file:// or https://."
            )
        if scheme != "file" and not rest.strip("/"):
            raise StorageError(
                f"{url!r} names no bucket and no host. Write {scheme}://name/folder."
            )
        if "@" in rest.removeprefix("//").partition("/")[0]:
            raise StorageError(
                f"{scheme}://…: no credentials in a URL. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment, or use a role."
            )
        if scheme != "file":
            return url.rstrip("/")
        url = rest.removeprefix("//")
    return "file://" + str(Path(url).expanduser().absolute())


def join(url: str, *names: str) -> str:
    """The URL of a name below `url`."""
    return "/".join([url.rstrip("/"), *(name.strip("/") for name in names)])


def name(url: str) -> str:
    """The last part of a URL."""
    return url.rstrip("/").rpartition("/")[2]


def is_local(url: str) -> bool:
    """Whether the URL lies on this machine's disk."""
    return absolute(url).startswith("file://")


def local_path(url: str) -> Path:
    """The path of a file:// URL."""
    return Path(absolute(url).removeprefix("file://"))


def expand(urls: str | list[str]) -> list[str]:
    """Every URL that brace ranges and globs stand for, sorted within each pattern.

    An https:// URL has no globs: its server lists nothing, and its `?` begins a query.

    Raises:
        StorageError: a pattern matches nothing, or its braces do not close.
    """
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        try:
            expanded = list(braceexpand.braceexpand(pattern, escape=False))
        except ValueError as err:
            raise StorageError(f"{pattern!r}: {err}. Write a range as {{00000..00099}}.") from err
        for url in map(absolute, expanded):
            globbed = not url.startswith("https://") and re.search(r"[*?\[]", url)
            found += _glob(url) if globbed else [url]
    return found


def _glob(url: str) -> list[str]:
    with explained(url):
        scheme = url.partition("://")[0]
        names = sorted(str(path) for path in _filesystem(scheme).glob(_strip(url)))
    if not names:
        raise StorageError(f"{url} matches nothing. Check the bucket and the pattern.")
    return [f"{scheme}://{path}" for path in names]


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or of its range [start, end); never fewer than asked for.

    Raises:
        StorageError: missing, denied, unreachable, or a body of the wrong length.
    """
    url = absolute(url)
    with explained(url):
        data: bytes = _fs(url).cat_file(_strip(url), start=start, end=end)
    if start is not None and end is not None and len(data) != end - start:
        raise StorageError(
            f"{url}: {len(data)} bytes came for the range {start}-{end}. The object is shorter "
            "than its index says: index it again."
        )
    return data


def write(url: str, data: bytes) -> None:
    """Writes the whole object or none of it; a file is synced, then renamed into place.

    Raises:
        StorageError: denied, full, unreachable.
    """
    url = absolute(url)
    with explained(url):
        if is_local(url):
            _write_file(local_path(url), data)
        else:
            _fs(url).pipe_file(_strip(url), data)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def open_read(url: str) -> Any:
    """A seekable file that reads ahead in ranges of 8 MiB."""
    url = absolute(url)
    with explained(url):
        if is_local(url):
            return open(local_path(url), "rb")
        return _fs(url).open(_strip(url), "rb", block_size=8 << 20, cache_type="readahead")


def exists(url: str) -> bool:
    """Whether an object is there; a bucket that cannot be reached is an error, not a no."""
    url = absolute(url)
    with explained(url):
        try:
            info = _fs(url).info(_strip(url))
        except (FileNotFoundError, NotADirectoryError):
            return False
    return info["type"] == "file"


def stat(url: str) -> tuple[int, str]:
    """(size in bytes, etag) of an object; a file's etag is its size and modification time."""
    url = absolute(url)
    with explained(url):
        info = _fs(url).info(_strip(url))
    return int(info["size"]), str(info.get("ETag") or f"{info['size']}-{info.get('mtime')}")


def children(url: str) -> list[str]:
    """Names directly below a URL, sorted; none where nothing is there."""
    url = absolute(url)
    with explained(url):
        try:
            paths = _fs(url).ls(_strip(url), detail=False)
        except FileNotFoundError:
            return []
    return sorted({name(str(path)) for path in paths} - {name(url), ""})


def delete(url: str) -> None:
    """Removes an object or everything below a URL."""
    url = absolute(url)
    with explained(url):
        try:
            _fs(url).rm(_strip(url), recursive=True)
        except FileNotFoundError:
            return


def require_bucket(url: str) -> None:
    """Asks the bucket of an s3:// URL for one name, to learn early that it can be used.

    Raises:
        StorageError: no such bucket, wrong credentials, unreachable.
    """
    url = absolute(url)
    if url.startswith("s3://"):
        bucket = _strip(url).partition("/")[0]
        with explained(f"s3://{bucket}"):
            _fs(url).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)


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


def _strip(url: str) -> str:
    return url if url.startswith("https://") else url.partition("://")[2]


def _fs(url: str) -> Any:
    return _filesystem(url.partition("://")[0])


@functools.cache
def _filesystem(scheme: str) -> Any:
    # One instance a process: fsspec's own cache is off so that none is inherited by a fork.
    options = {"use_listings_cache": False} if scheme == "s3" else {}
    return fsspec.filesystem(scheme, skip_instance_cache=True, **options)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns what a filesystem says into one sentence with the URL and the fix."""
    try:
        yield
    except OSError as err:
        raise StorageError(_sentence(url, err)) from err
    except Exception as err:
        if type(err).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise StorageError(_sentence(url, err)) from err
        raise


def _sentence(url: str, err: Exception) -> str:
    code = _code(err)
    if code in _ADVICE:
        return f"{url}: {_ADVICE[code]}"
    if isinstance(err, FileNotFoundError):
        return f"{url}: not there. Check the name."
    if isinstance(err, PermissionError):
        return f"{url}: permission denied. Check the rights and the credentials."
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{url}: no space left. Free some, or write elsewhere."
    return f"{url}: {type(err).__name__}: {' '.join(str(err).split())}"


def _code(err: BaseException) -> str:
    """The S3 error code or the client's error name, looked for down the chain of causes."""
    seen: BaseException | None = err
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        if type(seen).__name__ in _ADVICE:
            return type(seen).__name__
        seen = seen.__cause__ or seen.__context__
    return ""


_KEYS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_ENDPOINT = "Check the network and AWS_ENDPOINT_URL."
_ADVICE = {
    "NoSuchBucket": "no such bucket. Make it, or check the name.",
    "NoSuchKey": "not there. Check the name.",
    "InvalidAccessKeyId": f"unknown access key. {_KEYS}",
    "SignatureDoesNotMatch": f"wrong secret key. {_KEYS}",
    "AccessDenied": f"access denied. {_KEYS} Does the policy allow this bucket?",
    "403": f"access denied. {_KEYS} Does the policy allow this bucket?",
    "ExpiredToken": "the session token has expired. Get new credentials.",
    "NoCredentialsError": f"no credentials found. {_KEYS}",
    "EndpointConnectionError": f"the server does not answer. {_ENDPOINT}",
    "ConnectTimeoutError": f"the server does not answer. {_ENDPOINT}",
    "InsufficientStorage": "no space left in the bucket.",
}
