"""A folder that open_clip opens as `local-dir:`, with a proof.

    diptych export my_run --to open_clip --out folder
    model, _, look = open_clip.create_model_and_transforms("local-dir:folder")
    words = open_clip.get_tokenizer("local-dir:folder")

B rows, L tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...config import digest
from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.models import Clip
from ...pretrain.run import Run
from ...pretrain.task import Task
from ..clean_process import keep_probe, repeat
from ..clip_folder import CONFIG, SCALE, WEIGHTS
from ..target import new_folder

NAME = "open_clip"
TAKES = "the model clip, trained with contrastive"
_SENTENCES = ("a red circle on a table", "What colour is it?", "")


def require(run: Run) -> None:
    """Raises ExportError for any other model."""
    if not isinstance(run.model, Clip):
        raise ExportError(
            f"open_clip has no model like {run.model.kind!r} of {run.name}: its towers never meet. "
            "It takes the model 'clip' with the objective 'contrastive'; others go --to onnx, "
            "transformers or diptych."
        )
    if "contrastive" not in [objective.kind for objective in run.objectives]:
        raise ExportError(
            f"{run.name} was not trained with the objective 'contrastive', so there is no scale "
            "of its logits. Train it with contrastive first."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes open_clip_config.json, the weights, the tokenizer and a README with `facts`.

    Raises:
        ExportError: the folder is there already.
    """
    import transformers  # imports for seconds

    new_folder(out)
    assert isinstance(run.model, Clip)  # `require`
    settings = run.model.settings(text.size, task.words.empty[-1])
    settings["text_cfg"]["hf_tokenizer_name"] = "local"  # of a local-dir, the folder itself
    look = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": settings, "preprocess_cfg": {**look, "resize_mode": "shortest"}}
    (out / CONFIG).write_text(json.dumps(config, indent=1))
    state = task.state_dict()
    named = {n.removeprefix("model."): v for n, v in state.items() if n.startswith("model.")}
    least = torch.tensor(task.heads["contrastive"].most)
    named["logit_scale"] = torch.minimum(state[SCALE].cpu(), least).reshape(())
    weights = {name: value.float().contiguous().clone() for name, value in named.items()}
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=text.tokenizer,
        model_max_length=run.model.tokens,
        **{f"{part}_token": f"[{part.upper()}]" for part in ("pad", "unk", "cls", "sep", "mask")},
    ).save_pretrained(out)
    (out / "README.md").write_text(_card(run, facts))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has open_clip, in a process without Diptych, compute embeddings, logits and tokens.

    Raises:
        ExportError: it computed something else.
    """
    with torch.no_grad():
        view = task.eval().look(batch)
        towers = task.model(view).towers
        scale = task.heads["contrastive"]()
        logits_BB = scale * towers.image_BE @ towers.text_BE.T
    pad = run.model.tokens - view.tokens_BL.shape[1]
    told, _ = text.encode(_SENTENCES)
    given = {
        "in.image": view.image_BCHW,
        "in.text": torch.nn.functional.pad(view.tokens_BL, (0, pad)),
        "out.image_features": towers.image_BE,
        "out.text_features": towers.text_BE,
        "out.logits": logits_BB,
        "tokens": told,
    }
    keep_probe(out, given)
    (out / "sentences.json").write_text(json.dumps(_SENTENCES))
    return repeat(out, "clean_clip.py")


def _card(run: Run, facts: dict[str, Any]) -> str:
    rows = "".join(f"| {fact} | {value} |\n" for fact, value in facts.items())
    return f"""---
library_name: open_clip
tags: [clip]
---
# {run.name}

Trained by Diptych (recipe {digest(run)}), for {run.steps} steps of {run.batch}.

| | |
|---|---|
{rows}
```python
import open_clip
model, _, look = open_clip.create_model_and_transforms("local-dir:{run.name}")
words = open_clip.get_tokenizer("local-dir:{run.name}")
```
`proof.json` says how a process without Diptych reproduced the trained model's outputs.
"""
