"""A LoRA file of diffusers, its alphas in the metadata.

    diptych export my_lora --to diffusers-lora --out folder
    pipe.load_lora_weights("folder")

Without the metadata diffusers takes alpha for the rank, and says nothing.
"""

import json
from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.run import Run
from ...pretrain.task import Task
from .. import adapter_file as form
from ..adapter_proof import prove_adapter
from ..sides import Side, require_kinds, require_pipeline, require_tuners, sides
from ..target import new_folder

NAME = "diffusers-lora"
TAKES = "lora and dora on a unet and its CLIP, lokr on the unet alone"
ADAPTERS = True
READS = False
FILE = "pytorch_lora_weights.safetensors"
_NOT = {"loha": "diffusers reads no LoHa"}


def require(run: Run) -> None:
    """Raises ExportError where diffusers could not load the adapters."""
    require_tuners(run, NAME)
    require_kinds(run.adapters, _NOT, NAME)


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes the file and a README with `facts`.

    Raises:
        ExportError: the folder is in use, or a side is none of diffusers'.
    """
    found = _sides(run, task)
    new_folder(out)
    tensors = {f"{s.name}.{_old(s, key)}": v for s in found for key, v in s.tensors().items()}
    settings = {f"{s.name}.{key}": value for s in found for key, value in s.settings().items()}
    told = form.account(NAME, run, task, found)
    metadata = {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    form.put(out / FILE, tensors, told, metadata)
    call = f"```python\n{_call(found)}\n```\n`pipe.set_adapters` weighs several of them."
    told["loader"] = "diffusers"
    (out / "README.md").write_text(form.card(run, NAME, call, facts, told))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has diffusers load the file onto the base and compute the same, to the bit.

    Raises:
        ExportError: it lost a tensor, or computes something else.
    """
    found = _sides(run, task)
    kron = any(side.adapter.kind == "lokr" for side in found)
    loader = f"diffusers.{'load_lora_adapter' if kron else 'load_lora_weights'}"
    files = {"pipeline": FILE}
    return prove_adapter(out, run, task, text, loader=loader, files=files, tolerance=0.0)


def _sides(run: Run, task: Task) -> list[Side]:
    found = sides(run, task)
    require_pipeline(found, NAME)
    if [s for s in found if s.adapter.kind == "lokr"] and [s.name for s in found] != ["unet"]:
        raise ExportError(
            f"{run.name}: diffusers reads LoKr on its U-Net alone, and in no text encoder. "
            "Export --to kohya, --to peft or --to merged."
        )
    return found


def _old(side: Side, key: str) -> str:
    """CLIP's layers under the names that every version of diffusers knows.

    There transformers loads them, which finds DoRA's lengths under their whole name alone.
    """
    if side.name != "text_encoder":
        return key
    end = ".weight" if key.endswith("lora_magnitude_vector") else ""
    return f"text_model.{key.removeprefix('text_model.')}{end}"


def _call(found: list[Side]) -> str:
    if found[0].adapter.kind == "lokr":
        return f'pipe.unet.load_lora_adapter("folder", weight_name="{FILE}", prefix="unet")'
    return 'pipe.load_lora_weights("folder")'
