"""A cache made by Ray actors: the bytes of one actor, through the death of an actor and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from diptych.cluster.precompute import Job, Mapper, job, run_on
from diptych.cluster.shapes import Shape
from diptych.config import plain
from diptych.data import index, storage
from diptych.data.cache import open_cache
from diptych.data.precompute import Done, begin, seal
from diptych.errors import ClusterError, RecipeError
from diptych.pretrain.encoders import Taef2
from diptych.pretrain.encoders.taef2 import layers

pytestmark = pytest.mark.cluster
TARS = [f"{number:05d}.tar" for number in range(6)]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Taef2:
    """TAEF2 with random weights: quick to import, slow enough to be interrupted."""
    file = tmp_path_factory.mktemp("weights") / "random.safetensors"
    torch.manual_seed(0)
    save_file(layers().state_dict(), file)
    return Taef2(weights=str(file))


def begun(easy: str, out: str, encoder: Taef2) -> Job:
    source, spec = index.open_manifest(easy), encoder.spec(sizes=[(16, 16)])
    return job(source, encoder, spec, begin(source, spec, out), batch=16)


def test_two_actors_write_the_bytes_of_one_though_one_is_killed(
    ray_here: None, easy: str, bucket: str, encoder: Taef2
) -> None:
    source = index.open_manifest(easy)
    killed: list[int] = []

    def told(done: Done) -> None:
        if not killed:
            actors = [p for p in psutil.Process().children(recursive=True) if is_mapper(p)]
            killed.append(actors[0].pid)
            actors[0].kill()

    one = run_on(
        begun(easy, f"{bucket}/caches/one", encoder), Shape(workers=1), told=lambda done: None
    )
    two = run_on(begun(easy, f"{bucket}/caches/two", encoder), Shape(workers=2), told=told)
    assert killed
    assert sorted(done.shard for done in one) == sorted(done.shard for done in two) == TARS
    for name in TARS:
        assert storage.read(f"{bucket}/caches/one/{name}") == storage.read(
            f"{bucket}/caches/two/{name}"
        )
    spec = encoder.spec(sizes=[(16, 16)])
    seal(source, spec, f"{bucket}/caches/two")
    cache = open_cache(f"{bucket}/caches/two", source, **plain(spec))
    records = [entry.record for entry in index.entries(source, source.shards[5])]
    assert cache.of("00005.tar", records[-1])["latent"].shape == (32, 2, 2)


def is_mapper(process: psutil.Process) -> bool:
    try:
        return "Mapper" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_a_fault_of_the_encoder_reaches_the_driver(
    ray_here: None, easy: str, bucket: str, tmp_path: Path
) -> None:
    save_file({"0.bias": torch.zeros(64)}, tmp_path / "w.safetensors")
    wrong = Taef2(weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(RecipeError, match=r"w\.safetensors does not hold a model of kind 'taef2'"):
        run_on(begun(easy, f"{bucket}/caches/bad", wrong), Shape(workers=1), told=lambda done: None)
    assert not [name for name in storage.children(f"{bucket}/caches/bad") if "tar" in name]


def test_a_shard_that_kills_its_actors_is_blamed(
    ray_here: None, easy: str, bucket: str, encoder: Taef2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Mapper, number: int) -> Done:
        os._exit(1)

    monkeypatch.setattr(Mapper, "shard", die)
    monkeypatch.setattr("diptych.cluster.precompute._TRIES", 1)
    with pytest.raises(ClusterError, match=r"died 1 times while it encoded .*tar\. Lower --batch"):
        run_on(
            begun(easy, f"{bucket}/caches/dead", encoder), Shape(workers=1), told=lambda done: None
        )


def diptych(*words: str) -> list[str]:
    return [sys.executable, "-m", "diptych", "data", "precompute", *words]


def test_ctrl_c_and_on_again(easy: str, bucket: str, encoder: Taef2) -> None:
    """SIGINT to the whole foreground group, as a terminal sends it; one process goes on alone."""
    out = f"{bucket}/caches/cli"
    words = diptych(easy, "--encoder", f"taef2={encoder.weights}", "--out", out)
    words += ["--size", "24x32", "--batch", "8", "--json"]
    process = subprocess.Popen(
        [*words, "--workers", "2"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 240
    while not [name for name in storage.children(out) if name.endswith(".tar")]:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"goes on from here" in said
    assert b"Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    kept = sum(name.endswith(".tar") for name in storage.children(out))
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["samples"], facts["shards"], facts["unreadable"]) == (600, 6, 0)
    assert facts["encoded now"] <= 6 - kept
    source = index.open_manifest(easy)
    assert open_cache(out, source, encoder="taef2", sizes=((24, 32),)).manifest.samples == 600
