"""A file in kohya's layout, which ComfyUI and A1111 read; LoKr and LoHa in LyCORIS'.

    diptych export my_lora --to kohya --out folder

Each module has its alpha beside it; `ss_*` and `modelspec.*` say how it was trained.
"""

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ... import __version__
from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.run import Run
from ...pretrain.task import Task
from .. import adapter_file as form
from ..adapter_proof import prove_adapter
from ..sides import Side, require_kinds, require_pipeline, require_tuners, sides
from ..target import new_folder

NAME = "kohya"
TAKES = "lora, lokr and loha on a unet and its CLIP"
ADAPTERS = True
READS = False
_NOT = {"dora": "diffusers drops its dora_scale when it reads this layout, and goes on without"}
_MODULES = {"lora": "networks.lora", "lokr": "lycoris.kohya", "loha": "lycoris.kohya"}


def require(run: Run) -> None:
    """Raises ExportError where the layout's loaders could not load the adapters."""
    require_tuners(run, NAME)
    require_kinds(run.adapters, _NOT, NAME)


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes `NAME.safetensors` and a README with `facts`.

    Raises:
        ExportError: the folder is in use, or a side is none of the layout's.
    """
    found = _sides(run, task)
    new_folder(out)
    tensors = form.kohya_tensors(found)
    told = form.account(NAME, run, task, found)
    told["alphas"] = {n[:-6]: float(v) for n, v in tensors.items() if n.endswith(".alpha")}
    form.put(out / _file(run), tensors, told, _metadata(run, found, facts, tensors))
    told["loader"] = _loader(found)
    call = f"Put `{_file(run)}` into `models/loras` of ComfyUI or `models/Lora` of A1111."
    (out / "README.md").write_text(form.card(run, NAME, call, facts, told))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has diffusers' converter, or LyCORIS, load the file onto the base and compute the same.

    Raises:
        ExportError: it lost a tensor, or computes something else.
    """
    found = _sides(run, task)
    loader = _loader(found)
    even = all(len(set(side.alphas().values())) == 1 for side in found)
    # LyCORIS adds in another order; matrices that took over an alpha are rounded once more.
    tolerance = 0.0 if even and loader.startswith("diffusers") else 1e-5
    files = {"pipeline": _file(run)}
    return prove_adapter(out, run, task, text, loader=loader, files=files, tolerance=tolerance)


def _sides(run: Run, task: Task) -> list[Side]:
    found = sides(run, task)
    require_pipeline(found, NAME)
    kinds = {_loader([side]) for side in found}
    if len(kinds) > 1 or (kinds == {"lycoris"} and found[0].name != "unet"):
        raise ExportError(
            f"{run.name}: one loader reads such a file, and it wants the same kind on all sides, "
            "LyCORIS' on the unet at least. Export --to peft or --to merged."
        )
    return found


def _loader(found: list[Side]) -> str:
    lora = all(side.adapter.kind == "lora" for side in found)
    return "diffusers.load_lora_weights" if lora else "lycoris"


def _file(run: Run) -> str:
    return f"{run.name}.safetensors"


def _metadata(
    run: Run, found: list[Side], facts: dict[str, Any], tensors: dict[str, Any]
) -> dict[str, str]:
    ranks = Counter(rank for side in found for rank in side.ranks().values())
    alphas = Counter(alpha for side in found for alpha in side.alphas().values())
    kinds = sorted({side.adapter.kind for side in found})
    values = {
        "ss_network_module": _MODULES[kinds[0]],
        "ss_network_dim": str(ranks.most_common(1)[0][0]),
        "ss_network_alpha": f"{alphas.most_common(1)[0][0]:g}",
        "ss_network_args": json.dumps({} if kinds == ["lora"] else {"algo": kinds[0]}),
        "ss_output_name": run.name,
        "ss_learning_rate": f"{run.optim.lr:g}",
        "ss_max_train_steps": str(run.steps),
        "ss_steps": str(facts.get("steps", run.steps)),
        "ss_total_batch_size": str(run.batch),
        "ss_seed": str(run.seed),
        "ss_resolution": f"({run.model.image_size}, {run.model.image_size})",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": str(run.start_from),
        "ss_training_comment": f"Diptych {__version__}",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": run.name,
        "modelspec.resolution": f"{run.model.image_size}x{run.model.image_size}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": getattr(run.objectives[0], "predict", "epsilon"),
    }
    values["sshs_model_hash"] = hashlib.sha256(save(tensors)).hexdigest()
    return values
