"""One .safetensors file in the original layout of Stable Diffusion 1, with a proof.

    diptych export my_sd --to single-file --out folder
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        "folder/model.safetensors", config="folder/config")

`config/` says the sizes, which diffusers otherwise takes for those of Stable Diffusion 1; programs
that draw with that model alone need its sizes in the recipe.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.models import Unet
from ...pretrain.run import Run
from ...pretrain.task import Task
from .. import original
from .. import pipeline as pipes
from ..clean_process import repeat
from ..target import new_folder

NAME = "single-file"
TAKES = "denoisers of kind unet with text=clip or a frozen CLIP and a KL autoencoder"
READS = False
_FILE = "model.safetensors"


def require(run: Run) -> None:
    """Raises ExportError where the original layout has no place for such a model."""
    pipes.require(run)
    if isinstance(run.model, Unet) and run.model.norm != "add":
        raise ExportError(
            f"{run.name} has model.norm={run.model.norm}; Stable Diffusion's layout has 'add'. "
            "Export to diffusers instead."
        )
    stage = run.model.first_stage.kind if isinstance(run.model, Unet) else None
    if stage != "autoencoder":
        raise ExportError(
            f"{run.name} has the first stage {stage!r}; a single file of Stable Diffusion "
            "holds a KL autoencoder. Export to diffusers instead, or train in its latents."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes the file, the settings beside it and a README with `facts`.

    Raises:
        ExportError: the folder is in use, or a tensor has no name in that layout.
    """
    new_folder(out)
    made = pipes.pipeline(run, task, text)
    state = layout(made)
    save_file(state, out / _FILE, metadata={"format": "pt"})
    home = out / "config"
    for name, part in made.components.items():
        if part is not None and name in ("unet", "vae", "scheduler"):
            part.save_config(str(home / name))
        elif part is not None:
            (part if name == "tokenizer" else part.config).save_pretrained(str(home / name))
    made.save_config(str(home))
    call = f"""```python
import diffusers
pipe = diffusers.StableDiffusionPipeline.from_single_file(
    "{run.name}/{_FILE}", config="{run.name}/config", local_files_only=True)
image = pipe("a prompt", guidance_scale=3).images[0]
```"""
    (out / "README.md").write_text(pipes.card(run, "StableDiffusionPipeline", call, facts))


def layout(made: Any) -> dict[str, Tensor]:
    """All weights of a pipeline by the original's names."""
    unet, vae, text = made.unet, made.vae, made.text_encoder
    return {
        **original.to_original(unet.state_dict(), original.unet_naming(unet.config), original.UNET),
        **original.to_original(
            vae.state_dict(),
            original.autoencoder_naming(len(vae.config.block_out_channels)),
            original.FIRST,
        ),
        **original.to_original(text.state_dict(), original.text_naming, original.TEXT),
    }


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Proves the file against the trained task, and returns what proof.json holds.

    Raises:
        ExportError: diffusers, in a process without Diptych, drew other latents.
    """
    pipes.keep_probe(out, run, task, text, {"single_file": _FILE})
    return repeat(out, "clean_pipeline.py")
