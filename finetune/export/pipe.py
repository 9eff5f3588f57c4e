"""A folder of diffusers that `DiffusionPipeline.from_pretrained` opens, with a proof.

    diptych export my_ldm --to diffusers --out folder
    pipe = diffusers.DiffusionPipeline.from_pretrained("folder")
    pipe("a teal triangle", guidance_scale=3).images[0].save("triangle.png")

`StableDiffusionPipeline` where the first stage is a KL autoencoder, `LDMTextToImagePipeline` where
it is a VQ one. TAEF2 and pixels have no class there: with `vae=None` and `output_type="latent"` the
pipeline ends at what our first stage decodes.
"""

from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...pretrain.models import Unet
from ...pretrain.run import Run
from ...pretrain.task import Task
from .. import pipeline as pipes
from ..clean_process import repeat
from ..target import new_folder

NAME = "diffusers"
TAKES = "denoisers of kind unet with text=clip or a frozen CLIP"
READS = False


def require(run: Run) -> None:
    """Raises ExportError where no pipeline of diffusers is made of such a model."""
    pipes.require(run)


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes the pipeline's folders and a README with `facts`.

    Raises:
        ExportError: the folder is in use, or diffusers has another schedule.
    """
    new_folder(out)
    made = pipes.pipeline(run, task, text)
    made.save_pretrained(str(out), safe_serialization=True)
    made.tokenizer.save_pretrained(str(out / "tokenizer"))
    kind = type(made).__name__
    call = f"""```python
import diffusers
pipe = diffusers.{kind}.from_pretrained("{run.name}"{_head(run)})
image = pipe("a prompt", guidance_scale=3{_tail(run)}).images[0]
```"""
    (out / "README.md").write_text(pipes.card(run, kind, call, facts))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Proves a folder against the trained task, and returns what proof.json holds.

    Raises:
        ExportError: diffusers, in a process without Diptych, drew other latents.
    """
    pipes.keep_probe(out, run, task, text)
    return repeat(out, "clean_pipeline.py")


def _head(run: Run) -> str:
    return "" if _whole(run) else ", vae=None"


def _tail(run: Run) -> str:
    return "" if _whole(run) else ', output_type="latent"'


def _whole(run: Run) -> bool:
    """Whether diffusers has the first stage too."""
    return isinstance(run.model, Unet) and run.model.first_stage.kind in ("autoencoder", "vq")
