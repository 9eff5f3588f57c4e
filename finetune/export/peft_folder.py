"""Folders of peft: adapter_config.json and adapter_model.safetensors.

    diptych export my_lora --to peft --out folder
    peft.PeftModel.from_pretrained(unet, "folder")

An adapter on two sides becomes two folders, `unet/` and `text_encoder/`, for each module its own.
"""

import json
from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...pretrain.run import Run
from ...pretrain.task import Task
from .. import adapter_file as form
from ..adapter_proof import prove_adapter
from ..sides import Side, require_tuners, sides
from ..target import new_folder

NAME = "peft"
TAKES = "lora, dora, lokr and loha of every model"
ADAPTERS = True
READS = False
FILE = "adapter_model.safetensors"


def require(run: Run) -> None:
    """Raises ExportError where an adapter is none of peft's."""
    require_tuners(run, NAME)


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes the folders, the tokenizer and a README with `facts`.

    Raises:
        ExportError: the folder is in use, or two adapters are on one side.
    """
    found = sides(run, task)
    new_folder(out)
    for side in found:
        place = out / _folder(side, found)
        tensors = {f"base_model.model.{key}": value for key, value in side.tensors().items()}
        told = form.account(NAME, run, task, [side])
        form.put(place / FILE, tensors, told)
        base = {"base_model_name_or_path": run.start_from}
        config = side.settings() | base
        (place / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    (out / "tokenizer.json").write_text(text.tokenizer.to_str())
    told = form.account(NAME, run, task, found) | {"loader": "peft"}
    lines = [
        f'{s.name} = PeftModel.from_pretrained({s.name}, "{_folder(s, found)}")' for s in found
    ]
    call = "\n".join(["```python", "from peft import PeftModel", *lines, "```"])
    (out / "README.md").write_text(form.card(run, NAME, call, facts, told))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has peft load the folders onto the base and compute the same, to the bit.

    Raises:
        ExportError: it lost a tensor, or computes something else.
    """
    found = sides(run, task)
    files = {side.name: _folder(side, found) for side in found}
    return prove_adapter(out, run, task, text, loader="peft", files=files, tolerance=0.0)


def _folder(side: Side, found: list[Side]) -> str:
    return side.name if len(found) > 1 else "."
