"""ONNX of an encoder and its towers, that onnxruntime opens without torch or Diptych.

    diptych export my_run --to onnx --out folder
    session = onnxruntime.InferenceSession("folder/model.onnx")

Inputs: `image` (B, 3, H, W), channel / 127.5 - 1; `tokens` (B, L) and `real` (B, L), as
tokenizer.json gives them; and the arrays that the model reads, by name. Outputs: `pooled`,
`token_states`, `region_states`; `text_embeds` and `image_embeds` where the model has towers; the
logits of heads. Any number of rows. B rows, L tokens.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...config import digest
from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.objective import Seen, View
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import keep_probe, repeat
from ..target import new_folder

NAME = "onnx"
TAKES = "every model but denoisers"
SIZES = (1, 3, 8)
"""Batch sizes that the proof tries."""


def require(run: Run) -> None:
    """Raises ExportError for what is no encoder, and for one with a frozen encoder of regions."""
    if run.model.gives is not Seen:
        raise ExportError(
            f"{run.name} is of kind {run.model.kind!r}; --to onnx takes encoders, towers and "
            "denoisers. Its weights are in its checkpoints."
        )
    if run.model.eye:
        raise ExportError(
            f"{run.name} sees what the frozen encoder {run.model.eye.kind!r} says of a picture, "
            "which is not its own to export; --to diptych and --to transformers take it."
        )


class Graph(nn.Module):
    """What is exported: tensors in, tensors out, nothing hidden."""

    def __init__(self, run: Run, task: Task) -> None:
        super().__init__()
        self.task, self.objectives = task, run.objectives
        self.arrays = tuple(run.model.arrays)

    def forward(
        self, image: Tensor, tokens: Tensor, real: Tensor, arrays: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """The outputs in the order of `names`."""
        return tuple(self.named(image, tokens, real, arrays).values())

    def named(
        self, image: Tensor, tokens: Tensor, real: Tensor, arrays: list[Tensor]
    ) -> dict[str, Tensor]:
        """The outputs by name."""
        rows, spec = image.shape[0], self.task.spec
        looked = spec.look(dict(zip(self.arrays, arrays, strict=True))) or (None, None)
        view = View(
            batch=cast(Batch, None),  # no objective hides anything
            image_BCHW=image,
            tokens_BL=tokens,
            real_BL=real,
            hidden_BN=torch.zeros(rows, self.task.sizes.regions, dtype=torch.bool),
            matched_B=torch.ones(rows, dtype=torch.bool),
            features_BNF=looked[0],
            boxes_BN4=looked[1],
        )
        seen: Seen = self.task.model(view)
        found = {"pooled": seen.pooled_BD}
        found |= {"token_states": seen.tokens_BLD, "region_states": seen.regions_BND}
        if seen.towers is not None:
            found |= {"text_embeds": seen.towers.text_BE, "image_embeds": seen.towers.image_BE}
        for objective in self.objectives:
            logits = objective.logits(self.task.heads[objective.kind], seen)
            if logits is not None:
                found[f"{objective.kind}.logits"] = logits
        return {name: value for name, value in found.items() if value.numel()}


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes model.onnx, the tokenizer and a README with `facts`.

    Raises:
        ExportError: the folder is there already, or the model has an operation that ONNX lacks.
    """
    new_folder(out)
    graph = Graph(run, _padded(task)).eval()
    example = _inputs(run, text, 3)
    with torch.no_grad():
        names = list(graph.named(*example))
    rows = torch.export.Dim("rows", min=1, max=1 << 16)
    shapes = ({0: rows}, {0: rows}, {0: rows}, [{0: rows} for _ in run.model.arrays])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            torch.onnx.export(
                graph,
                example,
                str(out / "model.onnx"),
                input_names=["image", "tokens", "real", *run.model.arrays],
                output_names=names,
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as err:  # the exporter's own errors have no common base
        said = " ".join(str(err.__cause__ or err).split())[:300]
        raise ExportError(
            f"{run.model.kind} cannot be written as ONNX: {type(err).__name__}: {said}"
        ) from err
    (out / "tokenizer.json").write_text(text.tokenizer.to_str())
    (out / "README.md").write_text(_card(run, names, facts))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has onnxruntime, in a process without torch, compute batches of three sizes.

    Raises:
        ExportError: it computed something else.
    """
    graph, kept = Graph(run, _padded(task)).eval(), dict[str, Tensor]()
    for size in SIZES:
        rows = batch.pick(torch.arange(size) % batch.rows)
        arrays = [rows.arrays[name] for name in run.model.arrays]
        image = rows.image_BCHW.float() / 127.5 - 1.0
        given = (image, rows.tokens_BL, rows.real_BL)
        with torch.no_grad():
            found = graph.named(*given, arrays)
        names = ("image", "tokens", "real", *run.model.arrays)
        for name, value in zip(names, (*given, *arrays), strict=True):
            kept[f"{size}.in.{name}"] = value
        kept |= {f"{size}.out.{name}": value for name, value in found.items()}
    keep_probe(out, kept)
    return repeat(out, "clean_encoder_onnx.py")


def _padded(task: Task) -> Task:
    """The same module; packing is a way to compute, and none that a graph can hold."""
    if getattr(task.model, "packed", False):
        task.model.packed = False
    return task.eval()


def _inputs(run: Run, text: Text, rows: int) -> tuple[Any, ...]:
    side, length = run.model.image_size, run.model.tokens
    tokens_BL, real_BL = text.encode(["a"] * rows)
    arrays = [torch.rand(rows, *shape).sort(2).values for shape in run.model.arrays.values()]
    return torch.rand(rows, 3, side, side), tokens_BL[:, :length], real_BL[:, :length], arrays


def _card(run: Run, names: list[str], facts: dict[str, Any]) -> str:
    rows = "".join(f"| {fact} | {value} |\n" for fact, value in facts.items())
    side, length = run.model.image_size, run.model.tokens
    arrays = "".join(f", `{n}` (B, {a}, {b})" for n, (a, b) in run.model.arrays.items())
    return f"""---
library_name: onnx
tags: [vision-language]
---
# {run.name}

Trained by Diptych (recipe {digest(run)}), for {run.steps} steps of {run.batch}.

| | |
|---|---|
{rows}
`model.onnx` takes `image` (B, 3, {side}, {side}), channel / 127.5 - 1, `tokens` (B, {length}) int64
and `real` (B, {length}) bool of `tokenizer.json`{arrays}, and gives {", ".join(names)}. B is free.
`proof.json` says how onnxruntime reproduced the trained model's outputs.
"""
