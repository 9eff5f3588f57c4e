"""A folder of LXMERT, VisualBERT, ViLT or BERT for transformers' `from_pretrained`, with a proof.

    diptych export my_run --to transformers --out folder
    model = transformers.LxmertForPreTraining.from_pretrained("folder")

With the heads of `mlm` and `itm` it is the pretraining class (of ViLT and BERT, with `mlm`, the
one for masked words), else the bare model; other heads stay behind. B rows, L tokens, N regions.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import digest
from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.objective import Seen, View, real_regions
from ...pretrain.run import Run
from ...pretrain.task import Task
from ...pretrain.visuals import Patches
from ..clean_process import keep_probe, repeat
from ..interchange import Family, family
from ..target import new_folder

NAME = "transformers"
TAKES = "models of the form of LXMERT, VisualBERT, ViLT or BERT"


def require(run: Run) -> None:
    """Raises ExportError where transformers has no such model."""
    family(run.model)


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes config.json, model.safetensors, the tokenizer and a README with `facts`.

    Raises:
        ExportError: the folder is there already, or transformers has no such model.
    """
    import transformers  # imports for seconds

    there = family(run.model)
    new_folder(out)
    name, state = there.theirs(run.model, task.state_dict())
    kind: Any = getattr(transformers, name)
    settings = there.config(run.model, text.size)
    settings["pad_token_id"] = text.tokenizer.token_to_id("[PAD]")
    model = kind(kind.config_class(**settings))
    told = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    model.tie_weights()
    lost = [key for key in told.missing_keys if "decoder" not in key]  # tied to the words
    if lost or told.unexpected_keys:
        raise ExportError(
            f"This version of transformers ({transformers.__version__}) has another {name}: "
            f"{[*lost, *told.unexpected_keys][0]} does not fit. Use an older version."
        )
    model.save_pretrained(out)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=text.tokenizer,
        model_max_length=run.model.tokens,
        **{f"{part}_token": f"[{part.upper()}]" for part in ("pad", "unk", "cls", "sep", "mask")},
    ).save_pretrained(out)
    (out / "README.md").write_text(_card(run, name, facts))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Proves a folder against the trained task on a batch, and returns what proof.json holds.

    Raises:
        ExportError: transformers, in a process without Diptych, computed something else.
    """
    with torch.no_grad():
        seen: Seen = task.model(task.look(batch))
        expected = _outputs(family(task.spec), task, seen)
    given = _inputs(family(task.spec), seen.view)
    tensors = {f"in.{name}": value for name, value in given.items()}
    tensors |= {f"out.{name}": value.float() for name, value in expected.items()}
    keep_probe(out, tensors)
    return repeat(out, "clean.py")


def _inputs(there: Family, view: View) -> dict[str, Tensor]:
    """What transformers' model takes."""
    given = {"input_ids": view.tokens_BL, "attention_mask": view.real_BL.long()}
    real_BN = real_regions(view)
    if not view.hidden_BN.shape[1]:  # words alone
        return given
    if view.features_BNF is None or view.boxes_BN4 is None or real_BN is None:
        return {**given, "pixel_values": view.image_BCHW}
    given |= {"visual_attention_mask": real_BN.long(), there.features: view.features_BNF}
    return {**given, there.boxes: view.boxes_BN4} if there.boxes else given


def _outputs(there: Family, task: Task, seen: Seen) -> dict[str, Tensor]:
    """What it should compute, by its own names."""
    if not all(kind in task.heads for kind in there.heads):
        return {there.pooled: seen.pooled_BD}
    head: Any = task.heads["mlm"]
    found = {there.outputs["mlm"]: head(seen.tokens_BLD, seen.word_weights_VD)}
    if "itm" in there.heads:
        matched_B2 = task.heads["itm"](seen.pooled_BD)
        found[there.outputs["itm"]] = matched_B2.flip(1) if there.swapped else matched_B2
    return found


def _card(run: Run, name: str, facts: dict[str, Any]) -> str:
    rows = "".join(f"| {fact} | {value} |\n" for fact, value in facts.items())
    visual = getattr(run.model, "visual", None)
    pixels = (
        f"`pixel_values` are an image of {run.model.image_size} x {run.model.image_size} pixels, "
        "channel / 127.5 - 1."
        if isinstance(visual, Patches)
        else "Boxes are left, top, right and bottom as shares of the image's sides."
    )
    return f"""---
library_name: transformers
tags: [vision-language]
---
# {run.name}

Trained by Diptych (recipe {digest(run)}), for {run.steps} steps of {run.batch}.

| | |
|---|---|
{rows}
```python
import transformers
model = transformers.{name}.from_pretrained("{run.name}")
words = transformers.PreTrainedTokenizerFast.from_pretrained("{run.name}")
```
{pixels}
`proof.json` says how a process without Diptych reproduced the trained model's outputs.
"""
