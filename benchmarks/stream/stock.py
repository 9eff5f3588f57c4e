"""Everything that must be in the bucket before arms run: our tars and index, peers' forms."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diptych.data import index, storage, tokens
from diptych.errors import StaleIndexError

from . import home, peers, pictures


def stock(name: str, server: dict[str, str]) -> None:
    """Makes a set if it is not there, and puts it into the bucket in all forms."""
    pictures.make(name)
    _upload(home.shards(name), home.remote(name))
    captions = [path.read_text() for path in sorted(home.loose(name).glob("*.txt"))[:2000]]
    for url in (home.remote(name), str(home.shards(name))):
        if not indexed(url):
            index.build(storage.expand(storage.join(url, "*.tar")))
            storage.write(storage.join(url, "tokenizer.json"), tokens.learn(captions).encode())
    for peer in peers.PEERS:
        _convert(peer, name, server)


def indexed(url: str) -> bool:
    """Whether a set has an index of today's format."""
    try:
        return bool(index.open_manifest(url).shards)
    except StaleIndexError:
        return False


def form(peer: str, name: str) -> str:
    """Where a peer finds a set."""
    if peer == "energon":  # its index lies beside our tars, and its own client has its own URLs
        return f"msc://{home.BUCKET}/{name}"
    return home.remote(name, peer)


def unconverted(peer: str, name: str) -> str:
    """Why a peer cannot have a set in its form, or nothing."""
    failed = home.HOME / "sets" / name / f"{peer}.failed"
    return failed.read_text() if failed.exists() else ""


def _convert(peer: str, name: str, server: dict[str, str]) -> None:
    """A peer that fails leaves the reason in a file; the next run tries again."""
    made, folder = home.HOME / "sets" / name / f"{peer}.done", home.HOME / "sets" / name / peer
    if made.exists() or peers.missing(peer):
        return
    module = "diptych.benchmarks.stream.convert"
    command = [home.python(peer), "-m", module, peer, name, str(folder)]
    done = subprocess.run(
        command, env=home.environment(server), capture_output=True, text=True, cwd=home.HOME
    )
    failed = made.with_suffix(".failed")
    if done.returncode or not any(_files(folder)):  # litdata can fail and exit with 0
        failed.write_text(f"cannot convert the set: {done.stderr[-500:]}")
        return
    failed.unlink(missing_ok=True)
    _upload(folder, home.remote(name) if peer == "energon" else home.remote(name, peer))
    shutil.rmtree(folder)
    made.touch()


def _upload(folder: Path, url: str) -> None:
    there = set(storage.children(url))
    paths = [path for path in _files(folder) if path.relative_to(folder).parts[0] not in there]

    def one(path: Path) -> None:
        storage.write(storage.join(url, str(path.relative_to(folder))), path.read_bytes())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, paths))


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def describe_client(server: dict[str, str]) -> None:
    """Tells Energon's storage client of the bucket; the keys stay in the environment."""
    place = {"base_path": home.BUCKET, "endpoint_url": server["AWS_ENDPOINT_URL"]}
    place["region_name"] = server["AWS_DEFAULT_REGION"]
    profile = {"storage_provider": {"type": "s3", "options": place}}
    (home.HOME / "msc.json").write_text(json.dumps({"profiles": {home.BUCKET: profile}}))
