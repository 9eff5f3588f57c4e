"""A folder that `load` opens: config.json, model.safetensors, tokenizer.json, README.md, proof.

`load(path)` needs neither ray nor deepspeed, reads no pickle and runs no code from the folder:

    from diptych.finetune.export.folder import load
    model = load("exported")
    model.answer([Image.open("photo.png")], ["what color is the circle?"])
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...config import digest, plain
from ...data import tokens
from ...data.batch import Batch
from ...data.tokens import Text
from ...data.transforms import Frame, frame
from ...errors import ExportError
from ...pretrain.objective import Seen
from ...pretrain.run import Run, parse_run
from ...pretrain.task import Task
from ..clean_process import keep_probe, repeat
from ..heads import VisualQuestion
from ..parts import KINDS
from ..target import new_folder

NAME = "diptych"
TAKES = "every model but denoisers"
FORMAT = 1
_PROVEN = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Loaded:
    """An exported model, ready to use."""

    run: Run
    text: Text
    task: Task

    @torch.no_grad()
    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Everything that the model computes of a batch with nothing hidden, by name."""
        seen = self.task.model(self.task.look(batch))
        found = {"pooled": seen.pooled_BD, "tokens": seen.tokens_BLD, "regions": seen.regions_BND}
        for objective in self.run.objectives:
            logits = objective.logits(self.task.heads[objective.kind], seen)
            if logits is not None:
                found[f"{objective.kind}.logits"] = logits
        return found

    def batch(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Batch:
        """A batch of pairs, as `outputs` takes it."""
        side = self.run.model.image_size
        square = Frame(width=side, height=side)
        pixels = [np.array(image.convert("RGB")) for image in images]
        tokens_BL, real_BL = self.text.encode(texts)
        return Batch(
            keys=tuple(str(number) for number in range(len(texts))),
            draws_B=torch.arange(len(texts)),
            image_BCHW=torch.stack([frame(each, square, 0)[0] for each in pixels]),
            tokens_BL=tokens_BL,
            real_BL=real_BL,
            fields=tuple({} for _ in texts),
        )

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """The most likely answer to each question about its image.

        Raises:
            ExportError: the model has no VQA head.
        """
        heads = [o for o in self.run.objectives if isinstance(o, VisualQuestion)]
        if not heads:
            raise ExportError(f"{self.run.name} was not fine-tuned for questions (no vqa head).")
        best_B = self.outputs(self.batch(images, questions))["vqa.logits"].argmax(1)
        return [heads[0].answers[index] for index in best_B.tolist()]


def require(run: Run) -> None:
    """Raises ExportError for a denoiser."""
    if run.model.gives is not Seen:
        raise ExportError(
            f"{run.name} trained a denoiser ({run.model.kind}), which a folder of --to {NAME} "
            "cannot hold. Its weights are in its checkpoints."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes the folder; `facts` (data digest, metrics) go into its README.

    Raises:
        ExportError: the folder is there already.
    """
    new_folder(out)
    config = {"format": FORMAT, "recipe": plain(run), "digest": digest(run)}
    weights = {
        name: value.float().contiguous().clone() for name, value in task.state_dict().items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "tokenizer.json").write_text(text.tokenizer.to_str())
    (out / "README.md").write_text(_card(run, facts))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Proves a folder against the trained model on a batch, and returns what proof.json holds.

    Raises:
        ExportError: the clean process failed, or computed something else.
    """
    probe = {"image": batch.image_BCHW, "tokens": batch.tokens_BL, "real": batch.real_BL}
    probe |= {f"array.{name}": array for name, array in batch.arrays.items()}
    expected = Loaded(run, text, task).outputs(batch)
    keep_probe(out, {**probe, **{f"out.{name}": value for name, value in expected.items()}})
    return repeat(out, "diptych.finetune.prove")


def load(path: str | Path) -> Loaded:
    """Opens an exported folder; only JSON and safetensors are read.

    Raises:
        ExportError: not such a folder, one that changed since it was proven, or one whose weights
            do not fit its config.
    """
    home = Path(path)
    try:
        _require_proven(home)
        config = json.loads((home / "config.json").read_text())
        if config["format"] != FORMAT:
            raise ExportError(f"{home}: format {config['format']}, this Diptych reads {FORMAT}.")
        run = parse_run(config["recipe"], KINDS, source=str(home / "config.json"))
        text = tokens.from_text((home / "tokenizer.json").read_text(), run.model.tokens)
        weights = load_file(home / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as err:
        raise ExportError(f"{home} is not an exported folder: {err}") from err
    task = run.task(text)
    try:
        task.load_state_dict(weights)
    except RuntimeError as err:
        raise ExportError(f"{home}: model.safetensors does not fit config.json: {err}") from err
    return Loaded(run, text, task.eval())


def digests(home: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what the model computes."""
    return {name: hashlib.sha256((home / name).read_bytes()).hexdigest() for name in _PROVEN}


def _require_proven(home: Path) -> None:
    """Holds the files against proof.json, which is not there before the proof.

    Raises:
        ExportError: a file changed since.
    """
    if not (home / "proof.json").exists():
        return
    proven = json.loads((home / "proof.json").read_text())["sha256"]
    changed = [name for name, found in digests(home).items() if proven[name] != found]
    if changed:
        raise ExportError(
            f"{home / changed[0]} changed since it was proven (SHA-256). Export the run again."
        )


def _card(run: Run, facts: dict[str, Any]) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    names = ", ".join(objective.kind for objective in run.objectives)
    return f"""---
library_name: diptych
tags: [vision-language]
---
# {run.name}

A `{run.model.kind}` model trained by Diptych with {names}, for {run.steps} steps of {run.batch}.

| | |
|---|---|
{rows}
```python
from diptych.finetune.export.folder import load
model = load("{run.name}")            # reads JSON and safetensors only
```
`proof.json` says how a clean process reproduced the trained model's outputs from this folder.
"""
