"""A ControlNet as diffusers' `ControlNetModel.from_pretrained` opens it."""

from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.controls import ControlNet
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import repeat
from ..side_network import card, keep_looks, look

NAME = "controlnet"
TAKES = "runs of control `controlnet`"


def require(run: Run) -> None:
    """Raises ExportError where the run trained no ControlNet."""
    if not isinstance(run.control, ControlNet):
        raise ExportError(
            f"{run.name} trained {run.control.kind if run.control else 'no control'}; --to {NAME} "
            "holds a ControlNet."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes config.json, diffusion_pytorch_model.safetensors and README.md."""
    assert task.control is not None  # `require` saw to it
    net: Any = task.control.net
    net.save_pretrained(out, safe_serialization=True)
    (out / "README.md").write_text(card(run, facts, "ControlNetModel", "controlnet"))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has diffusers alone, in a clean process, give the same residuals."""
    asked, hint = look(task, batch)
    assert task.control is not None
    found = task.control.record.look(task.control.net, hint, asked)
    assert found.middle is not None
    outputs = {f"down.{n}": one for n, one in enumerate(found.down)} | {"middle": found.middle}
    keep_looks(out, asked, hint, outputs)
    return repeat(out, "clean_control.py")
