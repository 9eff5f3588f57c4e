"""The noise that a picture would have been drawn from: found, tried, written, read again.

N pictures, H x W pixels, C channels, h x w cells of a latent.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..data import storage
from ..data.draws import row_key
from ..data.transforms import Frame, frame
from ..errors import RecipeError
from ..pretrain.diffusion.generate import Given, asked, cells, denoiser, latents, to_bytes
from ..pretrain.diffusion.sampling import Sampling
from .guided import pixels_of
from .sample import Painter

_NAME = "noise"
"""Of the tensor in a file of latents."""


@dataclass(frozen=True)
class Inverted:
    """What became of pictures."""

    noise_NChw: Tensor
    """Scaled latents to draw from."""
    again_NHWC: Tensor
    """uint8: what is drawn from them."""
    latent_error: float
    """Root mean square of the latents drawn against those of the pictures, over their spread."""
    psnr: float
    """dB of the pictures drawn, against the pictures."""
    ceiling: float | None
    """dB of what the first stage alone gives back; None for pixels."""
    spread: float
    """Standard deviation of the noise: 1 where the model knows such pictures."""


def invert(
    base: Painter,
    pictures: Sequence[str | Image.Image | np.ndarray],
    prompts: Sequence[str],
    how: Sampling,
    *,
    refine: int = 0,
    told: Callable[[int], None] = lambda looks: None,
) -> Inverted:
    """Inverts pictures and draws them again from what was found.

    Args:
        base: a run of a denoiser.
        pictures: URLs or images; resized to cover the size and cut at the middle.
        prompts: one for each picture.
        how: steps, guidance, size; DDIM with eta 0, or Euler's steps along a flow.
        refine: how often each step is asked again.
        told: told of each look of the network: steps x (2 + refine) for all.

    Raises:
        RecipeError: no picture, or a way of sampling that is not inverted.
    """
    task, spec = base.task, denoiser(base.task)
    height, width = cells(task, how, 1)
    cut = Frame(width=width, height=height)
    real_NCHW = torch.stack([frame(pixels_of(picture), cut, 0)[0] for picture in pictures])
    assert task.stage is not None  # every denoiser has one
    stage = task.stage.on(task.anchor.device)
    keys_N = torch.tensor([row_key("generate", how.seed, at) for at in range(len(pictures))])

    def heard(x: Tensor, time_B: Tensor) -> Tensor:
        told(1)
        return ask(x, time_B)

    with torch.no_grad():
        latent_NChw = stage.encode(real_NCHW.to(task.anchor.device).float() / 127.5 - 1)
        back_NHWC = to_bytes(stage.decode(latent_NChw))
        ask = asked(task, base.text, prompts, keys_N, how, lambda view: view)
        noise_NChw = task.objectives[0].invert(heard, latent_NChw, how, refine).float()
        drawn = latents(
            task, base.text, prompts, how, given=Given(noise_NChw), rows=2 * len(pictures),
            told=told,
        )  # fmt: skip
        again_NChw = torch.cat([part for _, part in drawn])
        again_NHWC = to_bytes(stage.decode(again_NChw))
    off = (again_NChw - latent_NChw).square().mean().sqrt() / latent_NChw.std()
    real_NHWC = real_NCHW.permute(0, 2, 3, 1)
    ceiling = decibels(back_NHWC, real_NHWC) if spec.first_stage.places else None
    return Inverted(
        noise_NChw.cpu(), again_NHWC, float(off), decibels(again_NHWC, real_NHWC), ceiling,
        float(noise_NChw.std()),
    )  # fmt: skip


def decibels(one_NHWC: Tensor, other_NHWC: Tensor) -> float:
    """Peak signal to noise of uint8 images; infinite for equal ones."""
    error = (one_NHWC.float() - other_NHWC.float()).square().mean()
    return float(10 * (255**2 / error).log10())


def write_noise(noise_NChw: Tensor, path: Path, **notes: object) -> None:
    """Writes latents to draw from, with notes on where they come from."""
    told = {"diptych": json.dumps(notes, ensure_ascii=False)}
    storage.write(str(path), save({_NAME: noise_NChw.contiguous()}, told))


def read_noise(url: str) -> Tensor:
    """Latents to draw from, (N, C, h, w) float32.

    Raises:
        RecipeError: the file holds none.
    """
    data = storage.read(url)
    try:
        found = load(bytes(data))
    except SafetensorError as err:
        raise RecipeError(f"{url} is no safetensors file: {err}") from err
    noise = found.get(_NAME)
    if noise is None or noise.ndim != 4 or not noise.is_floating_point():
        there = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.items())
        raise RecipeError(
            f"{url} holds {there or 'nothing'}; a file of latents holds {_NAME!r} of shape "
            "(images, channels, height, width), as `diptych invert` writes it."
        )
    if not noise.isfinite().all():
        raise RecipeError(f"{url}: {_NAME!r} holds values that are not finite.")
    return noise.float()
