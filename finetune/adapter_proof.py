"""The proof of an exported adapter: a clean process puts it on the base and computes the same.

The base is written to a folder of its own for the time of the proof: `unet/` and `text_encoder/` as
diffusers and transformers write them, or a folder of Diptych for modules of our own.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.batch import Batch
from ..data.draws import row_key
from ..data.tokens import Text
from ..pretrain.objective import View
from ..pretrain.run import Run
from ..pretrain.task import Task
from .clean_process import repeat
from .sides import Side, calls, places, sides

_ROWS = 2


def prove_adapter(out: Path, run: Run, task: Task, text: Text, **how: Any) -> dict[str, Any]:
    """Leaves a probe in `out/proof/` and proves the adapter there on its base.

    `how` tells the clean process: `loader`, `files` and `tolerance`.

    Raises:
        ExportError: it was not loaded whole, or computes something else.
    """
    found = sides(run, task.eval())
    keep_probe(out, run, task, text, found, how)
    with tempfile.TemporaryDirectory(prefix="diptych-base-") as base:
        weights = {side.name: side.plain() for side in found}
        write_base(Path(base), run, text, weights, task)
        return repeat(out, script(side.name for side in found), base)


def script(found: Iterable[str]) -> str:
    """What proves sides: a stranger's script, or ours where a module is our own."""
    strange = all(side in ("unet", "text_encoder") for side in found)
    return "clean_adapter.py" if strange else "diptych.finetune.prove_adapter"


def keep_probe(
    out: Path, run: Run, task: Task, text: Text, found: list[Side], how: dict[str, Any]
) -> None:
    """Writes what each side is given of a few rows of noise and words, and what it says."""
    view = probe_view(run, task, text)
    tensors: dict[str, Tensor] = {}
    for side in found:
        args, kwargs, said = calls(side, lambda: task.model(view))
        if side.path == "":
            tensors |= {f"{side.name}.view.{n}": v for n, v in _view_tensors(view).items()}
        for number, value in enumerate(args):
            if isinstance(value, Tensor):
                tensors[f"{side.name}.arg.{number}"] = value
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                tensors[f"{side.name}.word.{name}"] = value
        tensors[f"{side.name}.out"] = said
    (out / "proof").mkdir(parents=True, exist_ok=True)
    whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    save_file(whole, out / "proof" / "probe.safetensors")
    facts = {"sides": {side.name: side.path for side in found}, "base": task.base, **how}
    (out / "proof" / "probe.json").write_text(json.dumps(facts, indent=1))


def probe_view(run: Run, task: Task, text: Text) -> View:
    """Noise at several times beside words of the vocabulary, keyed and so always the same."""
    words = [word for word in sorted(text.tokenizer.get_vocab()) if word.isalpha()]
    texts = [" ".join(words[(5 * row + 3 * n) % len(words)] for n in range(4)) for row in range(2)]
    ids_BL, real_BL = text.encode(texts)
    draw, side = (
        torch.Generator().manual_seed(row_key("adapter proof") & 0xFFFF),
        run.model.image_size,
    )
    batch = Batch(
        keys=tuple(str(row) for row in range(_ROWS)),
        draws_B=torch.tensor([row_key("adapter proof", row) for row in range(_ROWS)]),
        image_BCHW=torch.randint(256, (_ROWS, 3, side, side), generator=draw).to(torch.uint8),
        tokens_BL=ids_BL,
        real_BL=real_BL,
        fields=({},) * _ROWS,
        arrays={
            name: torch.rand(_ROWS, *shape, generator=draw).sort(-1).values
            for name, shape in run.model.arrays.items()
        },
    )
    return replace(task.look(batch), time_B=torch.tensor([50.0, 700.0]))


def _view_tensors(view: View) -> dict[str, Tensor]:
    assert view.time_B is not None
    found = {"image": view.image_BCHW, "tokens": view.tokens_BL, "real": view.real_BL}
    found |= {"time": view.time_B}
    return found | {f"array.{name}": value for name, value in view.batch.arrays.items()}


def write_base(
    out: Path, run: Run, text: Text, weights: Mapping[str, Mapping[str, Tensor]], task: Task
) -> None:
    """Writes the modules that the adapter stands on, each as its own library does.

    `weights` are those of each side of the task, without adapters.
    """
    paths = dict(places(task.model))
    own: dict[str, Tensor] = {}
    for name, state in weights.items():
        if name not in ("unet", "text_encoder"):
            prefix = f"{paths[name]}." if paths[name] else ""
            own |= {prefix + key: value for key, value in state.items()}
            continue
        module: Any = task.model.get_submodule(paths[name])
        bare = type(module).from_config(module.config) if name == "unet" else None
        bare = bare or type(module)(module.config)
        bare.load_state_dict(state)
        bare.save_pretrained(str(out / name), safe_serialization=True)
    if own:
        from .export import folder  # which imports this file

        alone = run.model_copy(update={"adapters": (), "start_from": None})
        bare_task = alone.task(text)
        bare_task.model.load_state_dict(own, strict=False)
        folder.write(out / "own", alone, bare_task, text, {})
