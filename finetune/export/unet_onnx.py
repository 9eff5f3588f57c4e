"""The denoiser alone as ONNX, for any number of rows, held against onnxruntime.

    diptych export my_ldm --to onnx --out folder
    session = onnxruntime.InferenceSession("folder/model.onnx")
    noise, = session.run(None, {"sample": x, "timestep": t, "encoder_hidden_states": context})

`timestep` is from 0 to 1000, one a row. Text encoder, first stage and the sampler's steps stay
outside: `--to diffusers` has them.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import digest
from ...data.batch import Batch
from ...data.draws import normal, row_key
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.models import Unet
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import keep_probe, repeat
from ..target import new_folder

NAME = "onnx"
TAKES = "denoisers of kind unet"
READS = False
_FILE = "model.onnx"
_ROWS = (1, 2, 5, 64)
_TRACED = 63
"""From 64 rows on diffusers copies a tensor to be contiguous, which changes no number."""


def require(run: Run) -> None:
    """Raises ExportError where there is no U-Net to export."""
    if not isinstance(run.model, Unet):
        raise ExportError(
            f"{run.name} is of kind {run.model.kind!r}; --to onnx takes a denoiser of kind 'unet'."
        )
    more = {"classes": run.model.classes, "placed": run.model.placed, "beside": run.model.beside}
    for what in (name for name, value in more.items() if value):
        raise ExportError(
            f"{run.name} is told more than time and text (model.{what}), for which the ONNX graph "
            "has no input. Train without it."
        )
    if run.model.texts:
        raise ExportError(
            f"{run.name} reads its texts with frozen encoders (model.texts), for whose states the "
            "ONNX graph has no input. Train with --set model.text=clip."
        )
    if run.model.text != "clip":
        raise ExportError(
            f"{run.name} masks what fills up its texts, and torch cannot export that mask of "
            "diffusers for any number of rows. Train with --set model.text=clip, which has none."
        )


class Bare(nn.Module):
    """(sample, timestep, states of the text) -> what the network says."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return self.unet(sample, timestep, context, return_dict=False)[0]


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes model.onnx and a README with `facts`.

    Raises:
        ExportError: the folder is in use, onnx is not installed, or torch cannot export the model.
    """
    new_folder(out)
    model = Bare(task.model.unet).eval()
    given = _inputs(run, task, rows=3)
    rows = torch.export.Dim("rows", min=1, max=_TRACED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own insides
            program = torch.onnx.export(
                model,
                tuple(given.values()),
                dynamo=True,
                dynamic_shapes=tuple({0: rows} for _ in given),
                input_names=list(given),
                output_names=["noise"],
                verbose=False,
            )
    except (ImportError, torch.onnx.OnnxExporterError) as err:
        raise ExportError(
            f"{run.name} cannot be written as ONNX: {' '.join(str(err).split())[:300]} "
            "--to onnx needs the packages onnx, onnxscript and onnxruntime."
        ) from err
    assert program is not None
    program.save(str(out / _FILE), external_data=False)
    (out / "README.md").write_text(_card(run, given, facts))


@torch.no_grad()
def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Holds onnxruntime's outputs at several numbers of rows against the trained model's.

    Raises:
        ExportError: in a process without Diptych, it computed something else.
    """
    model, tensors = Bare(task.model.unet).eval(), dict[str, Tensor]()
    for rows in _ROWS:
        given = _inputs(run, task, rows)
        tensors |= {f"in.{rows}.{name}": value for name, value in given.items()}
        tensors[f"out.{rows}"] = model(*given.values())
    keep_probe(out, tensors)
    return repeat(out, "clean_onnx.py")


def _inputs(run: Run, task: Task, rows: int) -> dict[str, Tensor]:
    """Noise, times and states of texts of the shapes that the denoiser takes."""
    spec = run.model
    assert isinstance(spec, Unet)
    cells = spec.image_size // spec.first_stage.factor
    keys_B = torch.tensor([row_key("onnx", number) for number in range(rows)])
    shape = (spec.first_stage.channels, cells, cells)
    noise = normal(keys_B, "sample", shape[0] * cells * cells)
    states = normal(keys_B, "context", spec.tokens * spec.width)
    return {
        "sample": noise.float().view(-1, *shape),
        "timestep": torch.linspace(1, 999, rows),
        "encoder_hidden_states": states.float().view(-1, spec.tokens, spec.width),
    }


def _card(run: Run, given: dict[str, Tensor], facts: dict[str, Any]) -> str:
    rows = "".join(f"| {fact} | {value} |\n" for fact, value in facts.items())
    shapes = "".join(
        f"| {name} | ({', '.join(['rows', *map(str, value.shape[1:])])}) | {value.dtype} |\n"
        for name, value in given.items()
    )
    return f"""# {run.name}: the denoiser as ONNX

Trained by Diptych (recipe {digest(run)}), for {run.steps} steps of {run.batch}. It says
`{getattr(run.objectives[0], "predict", "velocity")}`.

| | |
|---|---|
{rows}
| input | shape | type |
|---|---|---|
{shapes}
`proof.json` says how onnxruntime reproduced the trained model's outputs.
"""
