"""The base that an export is verified against: a run of ours, or a folder of diffusers."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..data import storage, tokens
from ..data.tokens import Text
from ..errors import ExportError
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.task import Task
from .adapter_proof import script, write_base
from .clean_process import repeat
from .parts import KINDS
from .sides import places, weights_digest
from .start import begin


@dataclass(frozen=True)
class Base:
    """Weights by side, and where they are from."""

    url: str
    sides: Mapping[str, Mapping[str, Tensor]]
    ours: tuple[Run, Task, Text] | None = None
    """None for a folder of diffusers."""

    def account(self) -> dict[str, dict[str, Any]]:
        """Of each side its digest, and its modules' shapes: what `verify` takes."""
        return {name: account_of(weights) for name, weights in self.sides.items()}

    def write(self, out: Path) -> None:
        """Writes it as the clean process of a proof wants it."""
        if self.ours is None:
            for name in self.sides:
                shutil.copytree(Path(self.url) / name, out / name)
            return
        run, task, text = self.ours
        write_base(out, run, text, self.sides, task)


def account_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Digest of a side's weights, and the shape of each module's weight."""
    ends = ".weight"
    named = {n.removesuffix(ends): tuple(v.shape) for n, v in weights.items() if n.endswith(ends)}
    return {"digest": weights_digest(weights), "shapes": named}


def open_base(url: str) -> Base:
    """Opens a finished run, or a folder of diffusers with `unet/`.

    Raises:
        ExportError: it is neither.
        CheckpointError: the run has no checkpoint.
    """
    place = RunDir(storage.absolute(url))
    if storage.exists(place.at("recipe.yaml")):
        run = place.recipe(KINDS)
        text = tokens.load(place.at("tokenizer.json"), run.model.tokens)
        alone = run.model_copy(update={"adapters": (), "start_from": None})
        task = alone.task(text)
        begin(task, place.url, averaged=True)
        found: dict[str, Mapping[str, Tensor]] = {}
        for name, path in places(task.model):
            module = task.model.get_submodule(path) if path else task.model
            found[name] = module.state_dict()
        return Base(place.url, found, (alone, task, text))
    home = Path(storage.local_path(place.url) if storage.is_local(place.url) else url)
    names = [name for name in ("unet", "text_encoder") if (home / name).is_dir()]
    if not names:
        raise ExportError(
            f"--base {url} is neither a run nor a folder of diffusers with unet/ in it."
        )
    return Base(str(home), {name: _weights(home / name) for name in names})


def prove_again(out: Path, base: Base) -> dict[str, Any] | None:
    """Repeats the proof of an export on a base, in a clean process; None where there is no probe.

    A pipeline stands on no base: it draws its latents again. The export stays as it is.

    Raises:
        ExportError: it is not loaded whole, or computes something else.
    """
    if not (out / "proof" / "probe.json").exists():
        return None
    probe = json.loads((out / "proof" / "probe.json").read_text())
    needed = probe.get("sides", {})
    if not needed and not _is_pipeline(probe):
        return None
    lacking = [side for side in needed if side not in base.sides]
    if lacking:
        raise ExportError(f"--base {base.url} has no {lacking[0]}, which {out} is an adapter of.")
    with tempfile.TemporaryDirectory(prefix="diptych-verify-") as home:
        copy, there = Path(home) / "export", Path(home) / "base"
        shutil.copytree(out, copy)
        if not needed:
            return repeat(copy, "clean_pipeline.py")
        Base(base.url, {side: base.sides[side] for side in needed}, base.ours).write(there)
        return repeat(copy, script(needed), str(there))


def _is_pipeline(probe: Mapping[str, Any]) -> bool:
    """Whether a probe is that of a pipeline as ours are written: no other file is opened."""
    kinds = ("StableDiffusionPipeline", "LDMTextToImagePipeline")
    ours = probe.get("single_file", "model.safetensors") == "model.safetensors"
    return probe.get("pipeline") in kinds and ours


def _weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    if not found:
        raise ExportError(f"{folder} holds no .safetensors weights.")
    return found
