"""Puts an adapter on a base of modules of our own, with peft, and repeats its probe.

`python -I -m diptych.finetune.prove_adapter FOLDER BASE`: as clean_adapter.py, whose base is
diffusers' and transformers' alone. B rows, L tokens.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.batch import Batch
from ..errors import ExportError
from ..pretrain.task import Task
from . import clean_adapter
from .export import folder
from .sides import tensor_of


class Plain(nn.Module):
    """A side whose answer is its first tensor, given the inputs of a probe."""

    def __init__(self, module: nn.Module, task: Task, view: dict[str, Tensor]) -> None:
        super().__init__()
        self.module, self.given = module, view
        self.tasks = (task,)  # in a tuple, so that its parameters are not this module's

    def forward(self, *args: Tensor, **words: Tensor) -> Tensor:
        """What the module says of tensors, or of the view that the probe holds."""
        return tensor_of(self.module(*args, **words) if args else self.module(self._view()))

    def _view(self) -> Any:
        given = self.given
        tokens_BL = given["tokens"]
        rows = len(tokens_BL)
        image_BCHW = given["image"]
        batch = Batch(
            keys=tuple(str(row) for row in range(rows)),
            draws_B=tokens_BL.new_zeros(rows),
            image_BCHW=image_BCHW.new_zeros(image_BCHW.shape),
            tokens_BL=tokens_BL,
            real_BL=given["real"],
            fields=({},) * rows,
            arrays={n[6:]: v for n, v in given.items() if n.startswith("array.")},
        )
        view: Any = getattr(self.tasks[0], "view", None)
        shown = view(batch, image_BCHW) if view else self.tasks[0].look(batch)
        return replace(shown, image_BCHW=image_BCHW, time_B=given["time"])


def main(out: Path, base: Path) -> None:
    """Opens the base, puts the adapter on, compares, writes proof.json."""
    told = json.loads((out / "proof" / "probe.json").read_text())
    probe = load_file(out / "proof" / "probe.safetensors")
    modules: dict[str, Any] = {}
    task = folder.load(base / "own").task
    for side, path in told["sides"].items():
        if side in ("unet", "text_encoder"):
            modules[side] = clean_adapter.opened(base, side)
            continue
        module = task.model.get_submodule(path) if path else task.model
        head = f"{side}.view."
        view = {k.removeprefix(head): v for k, v in probe.items() if k.startswith(head)}
        modules[side] = Plain(module, task, view)
    clean_adapter.LOADERS["peft"] = _with_peft
    clean_adapter.check(out, modules)


def _with_peft(out: Path, modules: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """peft's folders name the modules inside, not those that the probe is given to."""
    bare = {n: m.module if isinstance(m, Plain) else m for n, m in modules.items()}
    for name, made in clean_adapter.with_peft(out, bare, told).items():
        if isinstance(modules[name], Plain):
            modules[name].module = made
        else:
            modules[name] = made
    return modules


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except ExportError as error:
        sys.exit(str(error))
