"""The lecture's command, word for word, from the root of the repository."""

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from diptych.config import plain
from diptych.data.tokens import Text
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import revise
from diptych.pretrain.rundir import RunDir

ROOT = Path(__file__).parents[1]
SLIDE = (
    'python scripts/txt2img.py --prompt "a sunset behind a mountain range, vector image" '
    "--ddim_eta 1.0 --n_samples 1 --n_iter 1 --H 384 --W 1024 --scale 5.0"
)
PROMPT = "a-sunset-behind-a-mountain-range,-vector-image"


@pytest.fixture(scope="module")
def home(
    keep: Callable[..., RunDir], text: Text, tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """A run of a small denoiser; its first stage is at 1/32, so that a wide image is drawn fast."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae, kind = tmp_path_factory.mktemp("vae"), AutoencoderKL
    torch.manual_seed(0)
    options = {
        "block_out_channels": (4,) * 6, "down_block_types": ("DownEncoderBlock2D",) * 6,
        "up_block_types": ("UpDecoderBlock2D",) * 6, "norm_num_groups": 2,
    }  # fmt: skip
    kind(**options).save_pretrained(str(vae))  # pyright: ignore[reportArgumentType]
    stage = {"kind": "autoencoder", "weights": str(vae), "downsampling": 32}
    values = plain(vlp_easy()) | {"name": "painter", "objectives": [{"kind": "ddpm"}]}
    values["model"] = {
        "kind": "dit", "image_size": 64, "tokens": 12, "patch": 1, "width": 16, "depth": 1,
        "heads": 2, "first_stage": stage,
    }  # fmt: skip
    run = revise(values, [], KINDS, source="painter")
    torch.manual_seed(0)
    task = run.task(text)
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.1)
    return keep(run, task, text)


def run(line: str, out: Path, runs: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-P", *shlex.split(line)[1:], "--outdir", str(out)]
    environment = {**os.environ, "DIPTYCH_RUNS": runs, "OMP_NUM_THREADS": "1"}
    environment.pop("DIPTYCH_T2I", None)
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_slides_line_runs(home: RunDir, tmp_path: Path) -> None:
    runs = home.url.rpartition("/")[0]
    for number in range(2):  # a second call goes on counting
        done = run(f"{SLIDE} --ddim_steps 3", tmp_path, runs)
        assert done.returncode == 0, done.stderr
        assert f"model: {home.url}" in done.stdout
        assert len(list((tmp_path / "samples").iterdir())) == number + 1
    with Image.open(tmp_path / "samples/0001.png") as picture:
        assert picture.size == (1024, 384)
    with Image.open(tmp_path / f"{PROMPT}.png") as sheet:
        assert sheet.size == (1024, 384)  # a lone image has no border, as of make_grid
    assert {path.name for path in tmp_path.iterdir()} == {"samples", f"{PROMPT}.png"}


def script() -> Any:
    spec = importlib.util.spec_from_file_location("txt2img", ROOT / "scripts/txt2img.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("prompt", ["山の後ろの夕日、" * 20, "a/b c" * 50, "é" * 199])
def test_any_prompt_names_a_grid(prompt: str, tmp_path: Path) -> None:
    (tmp_path / script().sheet_name(prompt)).write_bytes(b"")
    [found] = tmp_path.iterdir()
    begin = found.stem
    assert 197 < len(begin.encode()) <= 200
    assert prompt.replace(" ", "-").replace("/", "-").startswith(begin)


@pytest.mark.parametrize("word", ["0", "-1", "two"])
def test_no_samples_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script().parsed(["--n_samples", word])
    assert f"{word!r} is no number from 1 on" in capsys.readouterr().err


def test_no_model_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = run(SLIDE, tmp_path / "out", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no trained text-to-image model")
    assert "diptych train t2i_tiny20" in done.stderr
    assert "Traceback" not in done.stderr
