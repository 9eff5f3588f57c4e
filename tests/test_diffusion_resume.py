"""Latent diffusion that is killed goes on with the same bits; its average is everybody's."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from rank_faults import key_of
from rich.console import Console

from diptych.cluster.shapes import Shape
from diptych.cluster.train import prepare, run_on
from diptych.data import index
from diptych.data.precompute import precompute
from diptych.pretrain.checkpoint import EMA, open_checkpoint
from diptych.pretrain.encoders import Autoencoder
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

UNET = {"kind": "unet", "channels": [8, 16], "groups": 4, "heads": 2, "width": 16, "tokens": 4}
STEPS = 8


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An autoencoder that makes 64 pixels 8 x 8 x 4, and draws its latents."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    home = tmp_path_factory.mktemp("frozen") / "vae"
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [4] * 4,
        "norm_num_groups": 2,
    }
    made: Any = AutoencoderKL.from_config(settings)
    made.save_pretrained(home)
    return str(home)


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_here")
def test_a_latent_run_killed_at_any_step_has_the_losses_of_a_calm_one(
    bucket: str, easy: str, vae: str, tiny: Callable[..., Run], fault: Callable[..., None]
) -> None:
    """From cached moments, two ranks at ZeRO-1: noise, times and dropped captions come again."""
    encoder = Autoencoder(weights=vae)
    source, cache = index.open_manifest(easy), f"{bucket}/easy-vae"
    precompute(source, encoder.open(), encoder.spec(sizes=((64, 64),)), cache)
    stage = f"{{kind: autoencoder, weights: {vae}}}"
    model = f"{{kind: unet, image_size: 64, channels: [8, 16], groups: 4, heads: 2, width: 16, tokens: 12, first_stage: {stage}}}"  # noqa: E501
    run = tiny(
        "latent", f"model={model}", "objectives=[{kind: ddpm, drop: 0.3}]", f"steps={STEPS}",
        "checkpoint_steps=2", f"data.caches=[{cache}]", "ema={decay: 0.9}",
    )  # fmt: skip

    def go(name: str) -> RunDir:
        shape = Shape(workers=2, keep_checkpoints=10)
        place, data = prepare(run, shape, f"{bucket}/runs/{name}")
        return run_on(run, shape, place, data, console=Console(quiet=True))

    calm = go("latent-calm")
    at = random.SystemRandom().randrange(1, STEPS)
    fault(what="SIGKILL", key=key_of(run, at, at % 2))
    killed = go("latent-killed")
    assert len(killed.rows("attempts.jsonl")) == 2
    wanted, found = (
        [{n: v for n, v in row.items() if n != "seconds"} for row in place.rows("metrics.jsonl")]
        for place in (calm, killed)
    )
    assert len(wanted) == STEPS
    assert found == wanted, f"killed in step {at}"
    ours, theirs = open_checkpoint(killed.url).weights(EMA), open_checkpoint(calm.url).weights(EMA)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_average_of_a_denoiser_is_a_single_process_at_any_world_size(tmp_path: Path) -> None:
    """Four steps in one process, against two there and two at another world size and stage."""
    recipe = {
        "model": UNET | {"image_size": 8},
        "objectives": [{"kind": "ddpm", "drop": 0.3}],
    }
    one, many = {"workers": 1, "zero_stage": 0}, [(2, 1), (2, 3)]
    whole: dict[str, Any] = {"do": "train", "shape": one, "steps": 4, "out": f"{tmp_path}/one"}
    jobs = [whole]
    for workers, stage in many:
        out, shape = f"{tmp_path}/{workers}-{stage}", {"workers": workers, "zero_stage": stage}
        again = {"do": "resume", "run": f"{tmp_path}/one", "step": 2, "steps": 4}
        jobs.append({**again, "shape": shape, "out": out})
    # Rounding grows with the rate: Adam takes steps as large where a gradient is all but zero.
    said = ranks.run(tmp_path, [{**job, "recipe": recipe, "lr": 1e-3} for job in jobs])
    wanted = open_checkpoint(f"{tmp_path}/one", 4)
    averages, weights = wanted.weights(EMA), wanted.weights()
    assert any(not torch.equal(averages[name], weights[name]) for name in averages)
    for (workers, stage), losses in zip(many, said[1:], strict=True):
        assert losses == pytest.approx(said[0][2:], rel=1e-5)
        found = open_checkpoint(f"{tmp_path}/{workers}-{stage}", 4).weights(EMA)
        assert found.keys() == averages.keys()
        for name, average in averages.items():
            torch.testing.assert_close(found[name], average, rtol=1e-4, atol=1e-5, msg=name)
