"""What a URL may be: s3://, file:// (or a plain path) and https://, nothing else.

Every other scheme is refused, so no URL can ever start a program, and none may hold credentials.
"""

import functools
import re
from pathlib import Path

from ..errors import StorageError

_SCHEMES = ("s3", "file", "https")
_WHOLE = ("s3://", "file:///", "https://")


def absolute(url: str) -> str:
    """The URL with its scheme; a plain path becomes an absolute file:// URL.

    Raises:
        StorageError: a scheme other than s3, file and https, or credentials in the URL.
    """
    # Only what depends on no folder may be remembered; `fetch` asks for each range.
    return _remembered(url) if url.startswith(_WHOLE) else _absolute(url)


def _absolute(url: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", url):
        raise StorageError(
            f"{_masked(url)!r}: refused, it holds a control character. Rename the object."
        )
    if re.match(r"^[a-zA-Z][\w+.-]*:", url):
        scheme, _, rest = url.partition(":")
        if scheme not in _SCHEMES or not rest.startswith("//"):
            raise StorageError(
                f"{_masked(url)!r}: the scheme {scheme!r} is refused. Use s3://, file:// or https://."
            )
        if scheme != "file" and not rest.removeprefix("//").partition("/")[0]:
            raise StorageError(
                f"{url!r} names no bucket and no host. Write {scheme}://name/folder."
            )
        if "@" in rest.removeprefix("//").partition("/")[0]:
            raise StorageError(
                f"{scheme}://…: no credentials in a URL. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment, or use a role."
            )
        if scheme != "file":
            return url if url.startswith("https:") and "?" in url else url.rstrip("/")
        url = rest.removeprefix("//")
    return "file://" + str(Path(url).expanduser().absolute())


_remembered = functools.lru_cache(4096)(_absolute)


def join(url: str, *names: str) -> str:
    """The URL of a name below `url`."""
    return "/".join([url.rstrip("/"), *(name.strip("/") for name in names)])


def name(url: str) -> str:
    """The last part of a URL, without a query."""
    return _bare(url).rstrip("/").rpartition("/")[2]


def parent(url: str) -> str:
    """The URL of the folder that it lies in."""
    return _bare(url).rpartition("/")[0]


def is_local(url: str) -> bool:
    """Whether the URL lies on this machine's disk."""
    return absolute(url).startswith("file://")


def local_path(url: str) -> Path:
    """The path of a file:// URL."""
    return Path(absolute(url).removeprefix("file://"))


def shown(url: str) -> str:
    """The URL as a message may show it: without a query, which can hold a signature."""
    bare, _, query = url.partition("?")
    return f"{bare}?…" if query and url.startswith("https://") else url


def _masked(url: str) -> str:
    """A refused URL without its query, and without what stands before its host."""
    bare, _, query = url.partition("?")
    return re.sub(r"//.*@", "//…@", bare) + ("?…" if query else "")


def _bare(url: str) -> str:
    return url.partition("?")[0] if url.startswith("https://") else url
