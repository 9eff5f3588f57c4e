"""An environment of its own for each peer that does not fit ours; made once, failures on record.

torch and the rest come from our own environment through a .pth file, so that only the peer itself
is downloaded.
"""

import subprocess
import sys
import sysconfig

from . import home

_CODECS = ["Brotli", "zstd", "python-snappy", "cramjam", "xxhash", "catalogue"]
PEERS = {
    "litdata": [["litdata==0.2.76"]],
    # It pins transformers<5 and numpy<2.2, and asks for four clouds; its loader needs only these.
    "mosaic": [["boto3"], ["--no-deps", "mosaicml-streaming==0.13.0", *_CODECS]],
    "energon": [["megatron-energon==7.4.1", "boto3"]],
}
"""What pip is told for each peer, one call after the other."""
_PHOTOS = ["scikit-image", "scikit-learn"]


def install() -> None:
    """Makes what is missing; a peer that cannot be installed leaves the reason in a file."""
    beside("photos", *_PHOTOS)
    for peer, calls in PEERS.items():
        folder = home.HOME / "venvs" / peer
        if (folder / "done").exists():
            continue
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--clear", folder], check=True
        )
        own = next((folder / "lib").glob("python3*")) / "site-packages"
        (own / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        failed = "".join(_pip(home.python(peer), *packages) for packages in calls)
        (folder / ("failed" if failed else "done")).write_text(failed)


def beside(name: str, *packages: str) -> str:
    """A folder with packages, without what they need, for PYTHONPATH; in no environment."""
    folder = home.HOME / name
    if not folder.exists():
        _pip(sys.executable, "--target", str(folder), "--no-deps", *packages, check=True)
    return str(folder.absolute())


def missing(peer: str) -> str:
    """Why a peer is not there, or nothing."""
    folder = home.HOME / "venvs" / peer
    if (folder / "done").exists():
        return ""
    return "cannot be installed: " + (folder / "failed").read_text()


def version(package: str, peer: str | None = None) -> str:
    """The version of a package in a peer's environment, or in ours."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    command = [home.python(peer), "-c", code]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "none"


def _pip(python: str, *packages: str, check: bool = False) -> str:
    """What pip said when it failed, or nothing."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=check)
    return "" if done.returncode == 0 else (done.stderr[-500:] or f"pip: exit {done.returncode}")


if __name__ == "__main__":
    install()
