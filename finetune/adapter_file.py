"""What files of adapters share: their own account of what is in them, and the card beside them."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import digest, plain
from ..pretrain.run import Run
from ..pretrain.task import Task
from .sides import Side

ACCOUNT = "diptych"
"""Key in a safetensors file's metadata under which its account stands."""


def account(target: str, run: Run, task: Task, found: list[Side]) -> dict[str, Any]:
    """What an export says of itself, and `diptych verify` holds it against."""
    return {
        "target": target,
        "recipe": digest(run),
        "base": task.base,
        "base_run": run.start_from,
        "bases": {side.name: side.digest() for side in found},
        "adapters": [plain(adapter) | {"kind": adapter.kind} for adapter in run.adapters],
        "alphas": {f"{side.name}.{n}": a for side in found for n, a in side.alphas().items()},
    }


def put(
    file: Path,
    tensors: Mapping[str, Tensor],
    told: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors with their account, which gains each one's shape."""
    whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    shapes = {name: list(value.shape) for name, value in whole.items()}
    found = json.dumps({**told, "tensors": shapes}, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(whole, file, metadata={"format": "pt", **(metadata or {}), ACCOUNT: found})


def kohya_name(side: str, module: str) -> str:
    """A module's name in kohya's layout, which ComfyUI and A1111 read too."""
    if side == "text_encoder":
        return "lora_te_text_model_" + module.removeprefix("text_model.").replace(".", "_")
    return "lora_unet_" + module.replace(".", "_")


def kohya_tensors(found: list[Side]) -> dict[str, Tensor]:
    """All tensors in kohya's layout (LoRA), or LyCORIS' (LoKr, LoHa), with an alpha each.

    diffusers reads one alpha for a side and drops those that differ, so LoRA's all become the most
    common one, and what differs goes into the matrices.
    """
    tensors: dict[str, Tensor] = {}
    for side in found:
        ranks, alphas = side.ranks(), side.alphas()
        common = Counter(alphas.values()).most_common(1)[0][0]
        for key, value in side.tensors().items():
            module, name = _split(key, ranks)
            if "lora_B" in name and alphas[module] != common:
                value = value * (alphas[module] / common)
            name = name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")
            tensors[f"{kohya_name(side.name, module)}.{name}"] = value
        for module, alpha in alphas.items():
            alpha = common if side.adapter.kind == "lora" else alpha
            tensors[f"{kohya_name(side.name, module)}.alpha"] = torch.tensor(alpha)
            _without_rank(tensors, kohya_name(side.name, module), alpha / ranks[module])
    return tensors


def _split(key: str, modules: Mapping[str, Any]) -> tuple[str, str]:
    module = next(name for name in modules if key.startswith(f"{name}."))
    return module, key.removeprefix(f"{module}.")


def _without_rank(tensors: dict[str, Tensor], module: str, scale: float) -> None:
    """LyCORIS multiplies by alpha / rank only where a factor has a low rank; else we do it now."""
    whole = [f"{module}.lokr_w1", f"{module}.lokr_w2"]
    if all(name in tensors for name in whole):
        tensors[whole[0]] = tensors[whole[0]] * scale


def card(
    run: Run, target: str, call: str, facts: Mapping[str, Any], told: Mapping[str, Any]
) -> str:
    """The README of an exported adapter, as hubs read it."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    kinds = ", ".join(adapter.kind for adapter in run.adapters)
    recipe = json.dumps([plain(adapter) | {"kind": adapter.kind} for adapter in run.adapters])
    return f"""---
base_model: {run.start_from}
library_name: {"peft" if target == "peft" else "diffusers"}
license: other
license_name: as-the-base-and-the-data
tags: [{", ".join(dict.fromkeys(adapter.kind for adapter in run.adapters))}, diptych]
---
# {run.name}

Adapters ({kinds}) trained by Diptych for {run.steps} steps of {run.batch} on a frozen base. No
licence was chosen: those of the base and of the training data hold.

| | |
|---|---|
{rows}| base | {run.start_from} |
| base digest | {told["base"]} |
| recipe digest | {told["recipe"]} |
| adapters | `{recipe}` |
| objectives | {", ".join(objective.kind for objective in run.objectives)} |
| learning rate | {run.optim.lr:g} |
| seed | {run.seed} |

{call}

`proof.json` says how a clean process loaded this into {told["loader"]} and computed the same.
`diptych verify . --base {run.start_from}` repeats that.
"""
