"""What a bucket, a disk or a network says, as one sentence with the URL and the fix."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import StorageError
from .urls import shown


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns what a filesystem says into one sentence with the URL and the fix."""
    try:
        yield
    except OSError as err:
        raise StorageError(sentence(url, err)) from err
    except Exception as err:
        if type(err).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise StorageError(sentence(url, err)) from err
        raise


def sentence(url: str, err: Exception) -> str:
    """What went wrong with a URL, and the fix."""
    url, full = shown(url), url
    code = _code(err)
    if code in _ADVICE:
        return f"{url}: {_ADVICE[code]}"
    if isinstance(err, FileNotFoundError):
        return f"{url}: not there. Check the name."
    if isinstance(err, PermissionError):
        return f"{url}: permission denied. Check the rights and the credentials."
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{url}: no space left. Free some, or write elsewhere."
    said = " ".join(str(err).split()).replace(full, url)
    return f"{url}: {type(err).__name__}: {said}"


def passing(err: Exception) -> bool:
    """Whether a fault that a client of S3 reports may be gone the next time."""
    code = _code(err)
    kinds = {each.__name__ for each in type(err).__mro__}
    return code in _PASSING or (not code and bool(kinds & _BROKEN))


def is_missing(err: BaseException | None) -> bool:
    """Whether an error says that an object, not its bucket, is not there."""
    if err is None or _code(err) == "NoSuchBucket":
        return False
    return isinstance(err, FileNotFoundError) or _code(err) in ("NoSuchKey", "404")


def refused(err: Exception) -> bool:
    """Whether a conditional write found that the object is there."""
    return _code(err) in {"PreconditionFailed", "412"}


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
    "RequestTimeTooSkewed": "refused: this machine's clock is wrong. Set it.",
    "NoCredentialsError": f"no credentials found. {_KEYS}",
    "EndpointConnectionError": f"the server does not answer. {_ENDPOINT}",
    "ConnectTimeoutError": f"the server does not answer. {_ENDPOINT}",
    "InsufficientStorage": "no space left in the bucket.",
}
_PASSING = {
    *("500", "502", "503", "504", "429", "InternalError", "ServiceUnavailable", "SlowDown"),
    *("RequestTimeout", "TooManyRequests", "Throttling", "ThrottlingException"),
    "ConditionalRequestConflict",
    *("EndpointConnectionError", "ConnectTimeoutError"),
}
_BROKEN = {"ConnectionError", "TimeoutError", "HTTPClientError", "IncompleteReadError"}
