"""From pictures to their noise and back: DDIM's inversion and that of flows; the verb."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.config import plain
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.inversion import read_noise
from diptych.finetune.parts import KINDS
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.objectives import DenoisingDiffusion, RectifiedFlow
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.rundir import RunDir

Keep = Callable[..., RunDir]
PREDICTIONS = ["epsilon", "v", "x0"]


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_a_gaussian(objective: Any, spread: float = 0.5) -> Any:
    """What the best network says where pictures are N(0, spread^2): known in closed form."""

    def ask(x: Tensor, time_B: Tensor) -> Tensor:
        share = float(time_B[0]) / 1000
        if isinstance(objective, RectifiedFlow):
            signal, noise = 1 - share, share
        else:
            a = objective.schedule.alphas_bar()[round(share * objective.schedule.steps)]
            signal, noise = float(a.sqrt()), float((1 - a).sqrt())
        whole = signal**2 * spread**2 + noise**2
        x0, drawn = signal * spread**2 / whole * x, noise / whole * x
        if isinstance(objective, RectifiedFlow):
            return drawn - x0
        said = {"epsilon": drawn, "x0": x0, "v": signal * drawn - noise * x0}
        return said[objective.predict]

    return ask


def restored(objective: Any, steps: int, refine: int = 0, **how: Any) -> float:
    """Root mean square of what inversion and sampling change, over the spread."""
    asked = Sampling(steps=steps, **how)
    x0, ask = 0.5 * double(4, 3, 2, 2), of_a_gaussian(objective)
    noise = objective.invert(ask, x0, asked, refine)
    again = objective.sample(ask, noise, asked, lambda name: noise)
    return float((again - x0).square().mean().sqrt() / x0.std())


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_sampling_restores_what_was_inverted_better_with_more_steps(predict: str) -> None:
    objective = DenoisingDiffusion(predict=predict)  # pyright: ignore[reportArgumentType]
    coarse, fine, finer = (restored(objective, steps) for steps in (10, 40, 160))
    assert finer < 0.03  # of the spread
    assert finer < fine / 2 < coarse / 4  # of first order
    assert restored(objective, 40, refine=3) < fine / 20


def test_a_flow_is_inverted_too() -> None:
    objective = RectifiedFlow()
    coarse, fine, finer = (restored(objective, steps) for steps in (10, 40, 160))
    assert finer < 0.02
    assert finer < fine / 2 < coarse / 4
    assert restored(objective, 40, refine=3) < fine / 20


def test_the_noise_is_that_of_the_gaussian() -> None:
    """Standard normal, since pictures that the network knows come from such noise."""
    objective, x0 = DenoisingDiffusion(), 0.5 * double(2000, 1, 1, 1)
    noise = objective.invert(of_a_gaussian(objective), x0, Sampling(steps=200))
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"eta": 0.5}, "inversion needs eta 0"),
        ({"sampler": "ddpm"}, "'ddpm' is not inverted here; ddim is"),
        ({"clip": True}, "clipped images cannot"),
        ({"spacing": "trailing"}, "Say --spacing leading"),
    ],
)
def test_what_cannot_be_inverted_is_refused(how: dict[str, Any], said: str) -> None:
    objective = DenoisingDiffusion(predict="x0")
    with pytest.raises(RecipeError, match=said):
        objective.invert(of_a_gaussian(objective), double(1, 1, 2, 2), Sampling(**how))


# The verb, and drawing from its file.


@pytest.fixture(scope="module")
def place(text: Text, keep: Keep) -> RunDir:
    values = plain(vlp_easy())
    values["name"] = "inverts"
    values["model"] = {"kind": "unet", "channels": [16, 16], "groups": 8, "heads": 2, "width": 32}
    values["model"] |= {"image_size": 16, "tokens": 12}
    values["objectives"] = [{"kind": "ddpm", "predict": "v"}]
    run: Run = revise(values, [], KINDS, source="small")
    torch.manual_seed(0)
    return keep(run, run.task(text), text)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "ramp.png"
    ramp = np.linspace(0, 255, 40 * 30 * 3).astype(np.uint8).reshape(30, 40, 3)
    Image.fromarray(ramp).save(path)
    return path


def said(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_invert_then_sample(place: RunDir, picture: Path, tmp_path: Path) -> None:
    how = ["--prompt", "a picture", "--steps"]
    found = {
        steps: said("invert", place.url, str(picture), *how, steps, "--out", str(tmp_path / steps))
        for steps in ("5", "40")
    }
    assert found["40"]["latent_error"] < found["5"]["latent_error"] / 2
    assert found["40"]["psnr_db"] > found["5"]["psnr_db"] > 5
    assert "first_stage_db" not in found["40"]  # pixels have none
    noise = load_file(found["40"]["latents"])["noise"]
    assert noise.shape == (1, 3, 16, 16)
    again = ["sample", place.url, *how, "40", "--guidance-scale", "1", "--n", "2"]
    said(*again, "--latents", found["40"]["latents"], "--out", str(tmp_path / "drawn"))
    first = np.array(Image.open(tmp_path / "40" / "00000.png")).astype(int)
    for number in ("00000.png", "00001.png"):  # one file serves both
        drawn = np.array(Image.open(tmp_path / "drawn" / number)).astype(int)
        assert abs(drawn - first).max() <= 1


def test_files_of_latents_that_do_not_fit_are_refused(
    place: RunDir, picture: Path, tmp_path: Path
) -> None:
    def refused(words: list[str], message: str) -> None:
        done = CliRunner().invoke(app, ["sample", place.url, "--steps", "2", *words])
        assert isinstance(done.exception, RecipeError) and message in str(done.exception)

    file, other = str(tmp_path / "noise.safetensors"), str(tmp_path / "other.safetensors")
    save_file({"noise": torch.zeros(2, 3, 8, 24)}, file)
    asked = ["--latents", file, "--prompt", "a"]
    refused([*asked, "--n", "3"], "holds latents of 2 images, and 3 are drawn")
    refused([*asked, "--n", "2", "--size", "16x16"], "is for 24x8 pixels; leave --size")
    save_file({"noise": torch.zeros(1, 4, 8, 8)}, file)
    refused(asked, "latents of shape (1, 4, 8, 8) to begin from; these images are drawn from (1, 3")
    save_file({"noise": torch.full((1, 3, 8, 8), float("nan"))}, file)
    refused(asked, "values that are not finite")
    save_file({"other": torch.zeros(1)}, other)
    refused(["--latents", other, "--prompt", "a"], "holds other (1,)")
    refused(["--latents", str(picture), "--prompt", "a"], "no safetensors file")
    with pytest.raises(RecipeError, match="no safetensors file"):
        read_noise(str(picture))
