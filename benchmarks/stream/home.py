"""Where the benchmark keeps its things: everything lies below `.bench/` and is made once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.cluster.bucket import serve

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ.get("DIPTYCH_BENCH", ROOT / ".bench")).absolute()
BUCKET = "bench"


def shards(name: str) -> Path:
    """The folder of a set's tars on this disk."""
    return HOME / "sets" / name / "shards"


def loose(name: str) -> Path:
    """The folder of a set's single files."""
    return HOME / "sets" / name / "loose"


def truth(name: str) -> Path:
    """The file that says what is in a set."""
    return HOME / "sets" / name / "truth.jsonl"


def remote(name: str, form: str = "") -> str:
    """The URL of a set in the bucket, as tars or in a peer's form."""
    return f"s3://{BUCKET}/{name}{form and '-' + form}"


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """The local S3 server with all sets; yields the environment of its clients."""
    with serve(HOME / "weed", BUCKET) as environment:
        yield environment


def python(peer: str | None) -> str:
    """The interpreter of a peer's environment, or this one."""
    return str(HOME / "venvs" / peer / "bin" / "python") if peer else sys.executable


def environment(server: dict[str, str]) -> dict[str, str]:
    """What an arm finds in its environment: nothing of the user's but the path and the home."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(HOME / "user"),
        "PYTHONPATH": str(ROOT / ".venv" / "checkout"),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        **server,
        "S3_ENDPOINT_URL": server["AWS_ENDPOINT_URL"],
        "MSC_CONFIG": str(HOME / "msc.json"),
    }
