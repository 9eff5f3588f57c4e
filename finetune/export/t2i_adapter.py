"""A T2I-Adapter as diffusers' `T2IAdapter.from_pretrained` opens it."""

from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.controls import T2IAdapter
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import repeat
from ..side_network import card, keep_looks, look

NAME = "t2i-adapter"
TAKES = "runs of control `t2i_adapter`"


def require(run: Run) -> None:
    """Raises ExportError where the run trained no T2I-Adapter."""
    if not isinstance(run.control, T2IAdapter):
        raise ExportError(
            f"{run.name} trained {run.control.kind if run.control else 'no control'}; --to {NAME} "
            "holds a T2I-Adapter."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes config.json, diffusion_pytorch_model.safetensors and README.md."""
    assert task.control is not None  # `require` saw to it
    net: Any = task.control.net
    net.save_pretrained(out, safe_serialization=True)
    (out / "README.md").write_text(card(run, facts, "T2IAdapter", "t2i-adapter"))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has diffusers alone, in a clean process, give the same features."""
    asked, hint = look(task, batch)
    assert task.control is not None
    found = task.control.record.look(task.control.net, hint, asked)
    outputs = {f"level.{n}": one for n, one in enumerate(found.levels)}
    keep_looks(out, asked, hint, outputs)
    return repeat(out, "clean_control.py")
