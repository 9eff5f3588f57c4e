"""A first stage as diffusers' `AutoencoderKL` or `VQModel`, its latents' scale measured.

diptych export my_kl --to autoencoder --out vae
diffusers.AutoencoderKL.from_pretrained("vae").config.scaling_factor
"""

from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.autoencoding import Decoded
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import keep_probe, repeat
from ..trained_stage import said, write_stage

NAME = "autoencoder"
TAKES = "models `kl_autoencoder` and `vq_autoencoder`"
_ROWS = 4


def require(run: Run) -> None:
    """Raises ExportError where the run trained no first stage."""
    if run.model.gives is not Decoded:
        raise ExportError(
            f"{run.name} is of kind {run.model.kind!r}; --to {NAME} holds first stages, of kind "
            "'kl_autoencoder' or 'vq_autoencoder'."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes config.json, diffusion_pytorch_model.safetensors and README.md."""
    write_stage(out, run, task, facts)


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has diffusers alone, in a clean process, give the same latents and the same images."""
    image_BCHW = batch.image_BCHW[:_ROWS].float() / 127.5 - 1
    outputs = said(run, task, image_BCHW)
    named = {f"out.{name}": value for name, value in outputs.items()}
    keep_probe(out, {"in.image": image_BCHW, **named})
    return repeat(out, "clean_autoencoder.py")
