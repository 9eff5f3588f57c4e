"""Submitting to a Ray cluster through its job API, local or far away."""

import logging
import os
import re
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from ..errors import ClusterError
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from . import auth, code, line, node
from .status import AT_IT

_BEGIN_S = 300.0
_READY_S = 90.0
_END_S = 60.0
_LOOK_S = 0.5
_TELL = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What a job is told of this machine's environment: where the bucket is, and nothing secret."""


def dashboard(address: str) -> str:
    """The URL that jobs are submitted to: of an http(s) URL, of `auto`, or of a Ray address.

    Raises:
        ClusterError: it is none of these, or nothing answers there.
    """
    if re.match(r"https?://", address):
        parts = urlsplit(address)
        if parts.username or parts.password:
            raise ClusterError("an address with a password in it is refused. Use a token file.")
        if not parts.hostname or parts.query or parts.fragment:
            raise ClusterError(f"{address!r} is not the address of a cluster: http://HOST:8265.")
        return address.rstrip("/")
    ours = node.running()
    if address == "auto" and ours and ours.dashboard:
        return ours.dashboard
    if address != "auto" and not re.fullmatch(r"[\w.-]+:\d+", address):
        raise ClusterError(
            f"--cluster {address!r}: say `local`, `auto`, http://HOST:8265, or the HOST:6379 of a "
            "cluster that this machine can reach."
        )
    return _asked(address)


def _asked(address: str) -> str:
    """Asks the head of a cluster where its dashboard is."""
    from ray.dashboard.utils import ray_address_to_api_server_url

    auth.present_token()
    try:
        return ray_address_to_api_server_url(address)
    except (RayError, ConnectionError, ValueError, RuntimeError) as err:
        raise ClusterError(
            f"no Ray cluster at {address!r} lets this process in ({type(err).__name__}). "
            f"`diptych up` starts one here. Is the token at {auth.token_path()} the cluster's?"
        ) from err


def client(address: str, *, insecure: bool = False) -> JobSubmissionClient:
    """A client of a cluster that asks for a token, and takes ours.

    Raises:
        ClusterError: it asks for none, or for another.
    """
    auth.require_locked(address, insecure=insecure)
    found = auth.headers()
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    try:
        made = JobSubmissionClient(address, headers=found)
        made.list_jobs()
        return made
    except (RayError, RuntimeError, ConnectionError) as err:
        have = "the token here is not its" if found else f"there is none at {auth.token_path()}"
        raise ClusterError(
            f"the cluster at {address} wants a token, and {have}. Copy ~/.ray/auth_token "
            "from its head, readable by you alone, or name a file in RAY_AUTH_TOKEN_PATH."
        ) from err


def submit(
    run: Run, place: RunDir, address: str, *, priority: int = 0, insecure: bool = False
) -> str:
    """Hands a run whose folder is prepared to a cluster; returns what it does once it is there.

    Raises:
        ClusterError: it was refused, or ended before it began.
    """
    ray, told = client(address, insecure=insecure), _told()
    version, digest = code.identity()
    asked = time.time()
    name = f"diptych-{place.name}-{int(asked * 1000)}"
    about = {"cluster": address, "id": name, "asked": asked, "priority": priority}
    words = ["python", "-P", "-m", "diptych.cluster.entry", place.url, digest, str(priority)]
    with tempfile.TemporaryDirectory(prefix="diptych-wheel-") as folder:
        wheel = str(code.wheel(Path(folder)))
        place.put("submission.json", {**about, "version": version, "digest": digest})
        line.status(place, "submitted", f"to {address}", steps=run.steps, host=address)
        try:
            _hand_over(
                ray,
                entrypoint=shlex.join(words),
                submission_id=name,
                runtime_env={"py_modules": [wheel], "env_vars": told},
                metadata={"run": place.url, "digest": digest, "priority": str(priority)},
            )
        except (RayError, RuntimeError, ConnectionError) as err:
            line.status(place, "failed", str(err))
            raise ClusterError(f"{address} did not take the run: {err}") from err
    return _await(ray, name, place)


def _hand_over(ray: JobSubmissionClient, **job: Any) -> None:
    """Submits a job; a cluster that has just come up says for a while that it takes none yet."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            ray.submit_job(**job)
            return
        except RuntimeError as err:
            if "No available agent" not in str(err) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


def stop(address: str, place: RunDir, *, insecure: bool = False) -> None:
    """Ends a run's job by force, through the cluster; for a driver that hears nothing more.

    The run's folder says so once the job is over: it cannot do so itself.

    Raises:
        ClusterError: the cluster knows no such job.
    """
    name = place.json("submission.json").get("id", "")
    try:
        ray = client(address, insecure=insecure)
        ray.stop_job(name)
        deadline = time.monotonic() + _END_S
        while not ray.get_job_status(name).is_terminal():
            if time.monotonic() > deadline:
                raise ClusterError(f"{address} has not ended job {name!r} within {_END_S:.0f} s.")
            time.sleep(_LOOK_S)
    except (RayError, RuntimeError) as err:
        raise ClusterError(f"{address} has no job {name!r} of {place.url}: {err}") from err
    if place.json("status.json").get("state") in AT_IT:
        line.status(place, "stopped", "killed through the cluster")


def _await(ray: Any, name: str, place: RunDir) -> str:
    """Waits until the driver answers for itself, or is dead."""
    deadline = time.monotonic() + _BEGIN_S
    while time.monotonic() < deadline:
        status = place.json("status.json")
        if status["state"] == "failed":
            raise ClusterError(status["note"])
        if status["state"] != "submitted":
            note = status["note"]
            return f"{status['state']}{f', {note}' if note else ''}"
        if ray.get_job_status(name) in (JobStatus.FAILED, JobStatus.STOPPED):
            said = f"{ray.get_job_info(name).message} {ray.get_job_logs(name)}"
            text = f"the job ended before it began: {' '.join(said.split())[-700:]}"
            line.status(place, "failed", text)
            raise ClusterError(text)
        time.sleep(_LOOK_S)
    return f"not begun after {_BEGIN_S:.0f} s; `diptych jobs` tells when it is"


def _told() -> dict[str, str]:
    found = {name: value for name in _TELL if (value := os.environ.get(name))}
    for name, url in found.items():
        if "@" in url:
            raise ClusterError(f"{name} has a password in it. Put keys into AWS_ACCESS_KEY_ID.")
    return found
