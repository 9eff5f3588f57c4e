"""The denoiser alone as ONNX, for any number of rows, held against onnxruntime.

    diptych export my_ldm --to onnx --out folder
    session = onnxruntime.InferenceSession("folder/model.onnx")
    noise, = session.run(None, {"sample": x, "timestep": t, "encoder_hidden_states": context})

`timestep` is from 0 to 1000, one a row. Beside it, where the model is told them:
`encoder_attention_mask`, False where a text is filled up (all but `text=clip`); `class_labels`,
the number of classes for none; `time_ids`, SDXL's six numbers; of several frozen text encoders
`encoder_hidden_states_2` and so on. A hint beside the latent is the last channels of `sample`.
Text encoder, first stage and the sampler's steps stay outside; `--to diffusers` has them, where it
takes the model.
"""

import math
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
from ...pretrain.denoiser import Denoiser, told_beside
from ...pretrain.diffusion.context import FrozenContext
from ...pretrain.objective import Asked
from ...pretrain.reader import States
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import keep_probe, repeat
from ..target import new_folder

NAME = "onnx"
TAKES = "denoisers"
READS = False
_FILE = "model.onnx"
_STATES, _MASK = "encoder_hidden_states", "encoder_attention_mask"
_ROWS = (1, 2, 5, 64)
_TRACED = 63
"""From 64 rows on diffusers copies a tensor to be contiguous, which changes no number."""


def require(run: Run) -> None:
    """Raises ExportError where there is no denoiser to export."""
    if not isinstance(run.model, Denoiser):
        raise ExportError(
            f"{run.name} is of kind {run.model.kind!r}; here --to onnx takes denoisers."
        )


class Bare(nn.Module):
    """Tensors in the order of `names` -> what the network says."""

    def __init__(self, run: Run, task: Task) -> None:
        super().__init__()
        self.model, self.names = task.model, list(_inputs(run, 1))

    def forward(self, given: list[Tensor]) -> Tensor:
        for value in given:  # said before anything divides one's rows by another's
            torch._check(value.shape[0] == given[0].shape[0])
        named = dict(zip(self.names, given, strict=True))
        states = [v for name, v in named.items() if name.startswith(_STATES)]
        masks = [v for name, v in named.items() if name.startswith(_MASK)]
        for state, mask in zip(states, masks, strict=False):
            torch._check(state.shape[1] == mask.shape[1])
        context_BLD, real_BL = states[0], masks[0] if masks else None
        if isinstance(self.model.context, FrozenContext):
            read = [States(*both, both[0][0]) for both in zip(states, masks, strict=True)]
            context_BLD, real_BL = self.model.context(read)
        added = told_beside(context_BLD, real_BL, named.get("time_ids"))
        return self.model.say(
            Asked(
                named["sample"],
                named["timestep"],
                context_BLD,
                real_BL,
                named.get("class_labels"),
                added,
            )
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes model.onnx and a README with `facts`.

    Raises:
        ExportError: the folder is in use, onnx is not installed, or torch cannot export the model.
    """
    new_folder(out)
    model, given = Bare(run, task).eval(), _inputs(run, rows=3)
    rows = torch.export.Dim("rows", min=1, max=_TRACED)
    free = [{0: rows} | _lengths(run, name) for name in given]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own insides
            program = torch.onnx.export(
                model,
                (list(given.values()),),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=list(given),
                output_names=["noise"],
                verbose=False,
            )
    except ImportError as err:
        raise ExportError(
            f"--to onnx needs the packages onnx, onnxscript and onnxruntime: {err}"
        ) from err
    except torch.onnx.OnnxExporterError as err:
        said = " ".join(str(err.__cause__ or err).split())[:300]
        raise ExportError(f"{run.name} cannot be written as ONNX: {said}") from err
    assert program is not None
    program.save(str(out / _FILE), external_data=False)
    (out / "README.md").write_text(_card(run, given, facts))


@torch.no_grad()
def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Holds onnxruntime's outputs at several numbers of rows against the trained model's.

    Raises:
        ExportError: in a process without Diptych, it computed something else.
    """
    model, tensors = Bare(run, task).eval(), dict[str, Tensor]()
    for rows in _ROWS:
        given = _inputs(run, rows)
        tensors |= {f"in.{rows}.{name}": value for name, value in given.items()}
        tensors[f"out.{rows}"] = model(list(given.values()))
    keep_probe(out, tensors)
    return repeat(out, "clean_onnx.py")


def _lengths(run: Run, name: str) -> dict[int, Any]:
    """That an input of a frozen encoder is of any length: texts are filled up to the longest."""
    of = name.removeprefix(_STATES).removeprefix(_MASK)
    frozen = isinstance(run.model, Denoiser) and run.model.texts and of != name
    return {1: torch.export.Dim(f"length{of}", min=2, max=1 << 16)} if frozen else {}


def _inputs(run: Run, rows: int) -> dict[str, Tensor]:
    """Noise, times and states of texts of the shapes that the denoiser takes."""
    spec = run.model
    assert isinstance(spec, Denoiser)
    cells = spec.image_size // spec.first_stage.factor
    keys_B = torch.tensor([row_key("onnx", number) for number in range(rows)])
    numbers_B = torch.arange(rows)

    def draw(name: str, *shape: int) -> Tensor:
        return normal(keys_B, name, math.prod(shape)).float().view(-1, *shape)

    found = {"sample": draw("sample", spec.channels_in, cells, cells)}
    found["timestep"] = torch.linspace(1, 999, rows)
    for number, width in enumerate([text.width for text in spec.texts] or [spec.width]):
        of = f"_{number + 1}" if number else ""
        length = spec.tokens + (rows % 4 if spec.texts else 0)
        found[_STATES + of] = draw(f"context{of}", length, width)
        if getattr(spec, "text", "") != "clip":
            lengths_B = 1 + (numbers_B + number) % length
            found[_MASK + of] = torch.arange(length) < lengths_B[:, None]
    if spec.classes:
        found["class_labels"] = numbers_B % (len(spec.classes) + 1)
    if spec.placed:
        found["time_ids"] = draw("place", 6).abs() * spec.image_size
    return found


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
