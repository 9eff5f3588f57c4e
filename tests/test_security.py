"""What a hostile URL, a hostile shard or a curious reader of logs must not get."""

import io
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from faults import proxied

from diptych.config import plain
from diptych.data import fetch, index, storage
from diptych.data.check import check
from diptych.data.index import Manifest
from diptych.data.loader import Recipe, once
from diptych.data.pack import Sample, tar
from diptych.data.preview import page
from diptych.data.tokens import Text
from diptych.errors import RecipeError, StorageError
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import revise

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]

HOSTILE = [
    "pipe:touch {canary}",
    "PIPE:touch {canary}",
    "Pipe://touch {canary}",
    "pipe:touch {canary}; #.tar",
    "http://127.0.0.1/x.tar",
    "HTTP:x",
    "ftp://127.0.0.1/x.tar",
    "gs://bucket/x.tar",
    "hf://datasets/x/y.tar",
    "ais://bucket/x.tar",
    "memory://x.tar",
    "s3a://bucket/x.tar",
    "S3://bucket/x.tar",
    "s3:bucket/x.tar",
    "FILE:///etc/passwd",
    "file::/etc/passwd",
    "file::s3://bucket/x.tar",
    "simplecache::s3://bucket/x.tar",
    "filecache::file://{canary}",
    "tar://x::s3://bucket/x.tar",
    "zip+s3://bucket/x.zip",
    "github://a:b@/x.tar",
    "ssh://host/x.tar",
    "data:text/plain,x",
    "javascript:alert(1)",
    "s3://bucket/x.tar\nX-Evil: 1",
    "https://host\r\nX-Evil: 1/x.tar",
]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that nobody may make, in a folder that relative names fall into."""
    monkeypatch.chdir(tmp_path)
    for rewrite in ("WDS_REWRITE", "GOPEN_REWRITE"):
        monkeypatch.setenv(rewrite, "s3://=pipe:touch canary ")
    return tmp_path / "canary"


@pytest.mark.parametrize("url", HOSTILE)
def test_other_schemes_are_refused_wherever_a_url_comes_in(
    url: str, canary: Path, samples: Samples, dataset: Dataset
) -> None:
    url = url.format(canary=canary)
    for use in (
        *(storage.absolute, storage.expand, storage.read, storage.open_read, storage.exists),
        *(storage.stat, storage.children, storage.delete, storage.require_bucket, storage.is_local),
        lambda url: storage.write(url, b"x"),
        lambda url: storage.expand(["{" + url + ",}"]),
        lambda url: storage.expand(url + "*"),
        lambda url: fetch.span(url, 0, 1),
        fetch.whole,
        lambda url: index.build([url]),
        index.open_manifest,
    ):
        with pytest.raises(StorageError, match="refused"):
            use(url)
    good = dataset([samples(2)])
    with pytest.raises(StorageError, match="refused"):
        index.build([good.shards[0].url], out=url)
    shards = tuple(replace(shard, url=url) for shard in good.shards)
    found = check(replace(good, shards=shards))
    assert found.good == 0
    assert not canary.exists()


@pytest.mark.parametrize("field", ["data.train", "data.test", "data.tokenizer", "start_from"])
@pytest.mark.parametrize("url", ["pipe:touch {canary}/", "gs://bucket/x", "simplecache::s3://b/x"])
def test_a_recipe_with_another_scheme_is_refused(field: str, url: str, canary: Path) -> None:
    url = url.format(canary=canary)
    with pytest.raises((RecipeError, StorageError), match="refused"):
        revise(plain(vlp_easy()), [f"{field}={url}"], KINDS, source="a test")
    assert not canary.exists()


def test_a_chain_in_a_key_is_only_a_key(bucket: str, canary: Path) -> None:
    for key in (
        "x::pipe:touch canary",
        "simplecache::memory://x",
        "$(touch canary)",
        "`touch canary`",
    ):
        url = f"{bucket}/odd/{key}"
        storage.write(url, key.encode())
        assert storage.read(url) == key.encode()
        assert storage.read(url, 1, 3) == key.encode()[1:3]
    assert not canary.exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def bombs(path: Path) -> dict[str, bytes]:
    """Members by extension; unpickling any of them leaves the canary."""
    bomb = pickle.dumps(Bomb(path))
    extensions = ("pyd", "pickle", "pkl", "pth", "pt", "ten", "joblib", "bin", "ckpt", "npz", "mp")
    return dict.fromkeys(extensions, bomb)


def everywhere(manifest: Manifest, text: Text) -> None:
    """Everything that reads the members of a dataset."""
    assert index.open_manifest(manifest.url).digest == manifest.digest
    check(manifest)
    page(manifest)
    for _ in once(manifest, text, Recipe(text="txt", image_size=8, seed=0)):
        pass


def test_no_member_is_unpickled(
    canary: Path, samples: Samples, dataset: Dataset, text: Text
) -> None:
    poisoned = [(key, {**members, **bombs(canary)}) for key, members in samples(3)]
    everywhere(dataset([poisoned]), text)
    assert not canary.exists()
    pickle.loads(bombs(canary)["pyd"]).close()
    assert canary.exists(), "the bombs are duds"


@pytest.mark.parametrize("extension", ["npy", "json", "txt", "cls", "png", "jpg", "webp"])
def test_known_extensions_are_not_unpickled_either(
    canary: Path, samples: Samples, dataset: Dataset, text: Text, extension: str
) -> None:
    blob = pickle.dumps(Bomb(canary))
    if extension == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
        blob = buffer.getvalue()
    poisoned = [(key, {**members, extension: blob}) for key, members in samples(2)]
    if extension in ("jpg", "webp"):  # the only image, so that it is looked at
        poisoned = [(key, {e: b for e, b in m.items() if e != "png"}) for key, m in poisoned]
    manifest = dataset([poisoned])
    try:
        everywhere(manifest, text)
    except Exception as err:
        assert type(err).__module__ == "diptych.errors", err
    assert check(manifest).good == 0
    assert not canary.exists()


def run(*words: str, **environment: str) -> tuple[int, str]:
    """(exit code, all that a verb says), and no argument of its processes has a secret."""
    env = {**os.environ, **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "diptych", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watched = psutil.Process(process.pid)
    arguments = ""
    while process.poll() is None:
        try:
            for each in [watched, *watched.children(recursive=True)]:
                arguments += " ".join(each.cmdline()) + "\n"
        except psutil.Error:
            continue  # it has just ended
        time.sleep(0.05)
    said = process.communicate()[0]
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert env.get(name, "canary-0") not in said + arguments
    return process.returncode, said


def test_secrets_are_in_no_output_url_or_argument(
    bucket: str, samples: Samples, tmp_path: Path
) -> None:
    url = f"{bucket}/secrets"
    storage.write(f"{url}/0.tar", tar(samples(3)))
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as (proxy, endpoint):
        proxy.faults("slowdown", first=2)
        code, said = run("data", "index", f"{url}/*.tar", AWS_ENDPOINT_URL=endpoint)
        assert code == 0, said
        code, said = run("--debug", "data", "check", url, AWS_ENDPOINT_URL=endpoint)
        assert code == 0, said
        wrong = {"AWS_SECRET_ACCESS_KEY": "canary-1/a+b", "AWS_SESSION_TOKEN": "canary-2/a+b"}
        code, said = run("--debug", "data", "check", url, AWS_ENDPOINT_URL=endpoint, **wrong)
        assert code != 0, said
        code, said = run(
            "--debug", "data", "index", "s3://nowhere/0.tar", AWS_ENDPOINT_URL=endpoint
        )
        assert "no such bucket" in said, said
        assert proxy.seen["GET"] > 4
        heard = "\n".join(proxy.heard)
        assert secret not in heard
        assert "canary-1" not in heard
        assert not [line for line in heard.splitlines() if "canary-2" in line and "HTTP/1" in line]
        assert "X-Amz-Signature=" not in heard
    for name in ("manifest.json", "0.tar.json"):
        assert secret.encode() not in storage.read(f"{url}/index/{name}")


def test_no_log_of_any_level_has_the_secret(
    bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(f"{bucket}/logged", b"0123456789")
    storage.forget_filesystems()
    caplog.set_level(logging.DEBUG)
    assert fetch.span(f"{bucket}/logged", 2, 5) == b"234"
    assert storage.stat(f"{bucket}/logged")[0] == 10
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-3/a+b")
    storage.forget_filesystems()
    for use in (lambda url: fetch.span(url, 0, 1), storage.stat, storage.children):
        with pytest.raises(StorageError):
            use(f"{bucket}/logged")
    assert caplog.records
    assert secret not in caplog.text
    assert "canary-3" not in caplog.text
    monkeypatch.undo()
    storage.forget_filesystems()
