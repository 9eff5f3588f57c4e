"""Ray's authentication token: where it lies, who may read it, and a cluster that asks for none."""

import importlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from ..errors import ClusterError

_ASK_S = 10.0


def token_path() -> Path:
    """Where the token is, or will be: Ray's own place, or where RAY_AUTH_TOKEN_PATH says."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def ensure_token() -> Path:
    """A token that its owner alone can read: the one that is there, or a new one.

    Ray itself writes such a file so that everybody on the machine can read it.

    Raises:
        ClusterError: the file is somebody else's, or empty.
    """
    path = token_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _narrow(path)
        return path
    with os.fdopen(file, "w") as out:
        out.write(secrets.token_hex(32))
    return path


def _narrow(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        try:
            path.chmod(0o600)
        except PermissionError as err:
            raise ClusterError(
                f"{path} can be read by others and belongs to somebody else. Point "
                "RAY_AUTH_TOKEN_PATH to a file of your own."
            ) from err
    if not path.read_text().strip():
        raise ClusterError(f"{path} is empty. Delete it: a new token will be drawn.")


def headers() -> dict[str, str]:
    """What authenticates a request to a cluster; nothing where this user has no token."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token and token_path().exists():
        _narrow(token_path())
        token = token_path().read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def present_token() -> None:
    """Has Ray show the token that lies here to the cluster that it connects to.

    Ray does so of itself only where it finds that cluster on this machine, not where it is named.
    """
    if "RAY_AUTH_MODE" in os.environ or not headers():
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    config: Any = importlib.import_module("ray._raylet").Config
    config.initialize("")  # it has read the environment before


def require_locked(address: str, *, insecure: bool = False) -> None:
    """Asks a cluster for its jobs without a token; it must say no.

    Raises:
        ClusterError: it answers, so that anybody may run anything there; or it is not there.
    """
    url = f"{address}/api/jobs/"
    try:
        # No redirect is followed: where it leads to is not the cluster that was named.
        answer = requests.get(url, timeout=_ASK_S, allow_redirects=False)
    except requests.RequestException as err:
        raise ClusterError(
            f"no Ray dashboard answers at {address} ({type(err).__name__}). Is the cluster up, and "
            "is its port reachable? A tunnel: ssh -L 8265:127.0.0.1:8265 HEAD"
        ) from err
    if answer.status_code in (401, 403):
        return
    if answer.status_code != 200:
        raise ClusterError(
            f"{url} answered with status {answer.status_code}: not the dashboard of a Ray cluster. "
            "Name its address, such as http://127.0.0.1:8265."
        )
    if not insecure:
        raise ClusterError(
            f"the Ray cluster at {address} asks nobody for a token: whoever reaches it can run "
            "anything there. Start it with `diptych up` (or RAY_AUTH_MODE=token on every node), "
            "or say --insecure-cluster."
        )


def in_clear(address: str) -> bool:
    """Whether the token travels unencrypted over a network."""
    parts = urlsplit(address)
    return parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1")
