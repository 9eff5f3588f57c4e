"""`diptych import`: weights of others as a run, as if it had been trained here.

A folder of diffusers stays where it is: its autoencoder and a frozen text encoder are read there.
Of a single file both are unpacked into the run's folder, since a recipe names folders.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..config import digest, override, plain
from ..data import storage, tokens
from ..errors import RecipeError, RunError
from ..pretrain import checkpoint
from ..pretrain.run import Optim, Run, parse_run
from ..pretrain.rundir import RunDir
from ..pretrain.slices import put_slices
from ..pretrain.task import Task
from .foreign import Foreign, open_foreign
from .foreign_recipe import complete, first_stage_values, frozen_text, objective_values, words_of
from .parts import KINDS
from .start import fresh_task

_DATA = "s3://my-bucket/photos"
"""Stands in for training data, of which nothing is read; whoever trains on names their own."""
_SD1 = {"shape": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""The schedule of Stable Diffusion 1, which a lone file does not say."""


def bring(
    source: str, place: RunDir, settings: list[str], *, data: str | None, words: str | None
) -> dict[str, Any]:
    """Writes the run's folder with one checkpoint; returns facts to show.

    Args:
        source: a folder of diffusers, or one .safetensors file.
        place: the new run.
        settings: `path=value` of its recipe.
        data: training data that the recipe is to name.
        words: folder of CLIP's tokenizer, for a file with a text encoder that stands alone.

    Raises:
        RecipeError: neither of the two, or it does not say enough.
        CheckpointError: tensors are missing, left over or of other shapes.
        RunError: the run is there already, of another recipe or no import of this source; it is
            left as it was.
    """
    found = open_foreign(storage.absolute(source))
    if found is None:
        raise RecipeError(
            f"{source} is neither a folder of diffusers with unet/config.json nor a .safetensors "
            "file. Runs of ours and models of open_clip and transformers are started from as they "
            "are: train ... --start-from FOLDER."
        )
    found.require()
    _require_own(found, place)
    later: list[Callable[[], None]] = []
    values = _values(found, place, settings, later, data, words)
    run = parse_run(complete(override(values, settings)), KINDS, source=source)
    kept = run.model_copy(update={"start_from": None})  # what it holds needs the source no more
    made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    facts = {"data": None, "made": made, "diptych": __version__, "source": found.url}
    place.holds(kept, facts)  # refuses another recipe before anything is written over
    for write in later:
        write()
    text = tokens.load(run.data.tokenizer, run.model.tokens)
    task = fresh_task(run, text)
    place.create(kept, facts)
    storage.write(place.at("tokenizer.json"), text.tokenizer.to_str().encode())
    count = _keep(place, kept, task)
    status = {"state": "finished", "note": f"imported from {found.url}"}
    place.put("status.json", {**status, "step": kept.steps, "steps": kept.steps})
    stage = plain(kept)["model"]["first_stage"]
    return {"run": place.url, "parameters": f"{count:,}", "first stage": stage["kind"]}


def _require_own(found: Foreign, place: RunDir) -> None:
    """Raises RunError where the folder holds a run that is no import of this source."""
    if not any(storage.exists(place.at(name)) for name in ("run.json", "recipe.yaml")):
        return
    source = place.json("run.json").get("source")
    if source != found.url:
        what = f"was imported from {source}" if source else "is a run of its own"
        raise RunError(
            f"{place.url} {what}; {found.url} would be written over it. Give the import another "
            "name with --run."
        )


def _values(
    found: Foreign,
    place: RunDir,
    settings: list[str],
    later: list[Callable[[], None]],
    data: str | None,
    words: str | None,
) -> dict[str, Any]:
    """The recipe as far as the source alone says it; `complete` reads the rest.

    What the run's folder is to hold besides goes to `later`: nothing is written here.
    """
    own = words_of(found)
    values: dict[str, Any] = {
        "name": place.name,
        "start_from": found.url,
        "model": {"kind": "unet"},
        "data": {
            "train": data or _DATA,
            "test": data,
            "tokenizer": own or place.at("tokenizer.json"),
        },
        "optim": plain(Optim(lr=1e-5)),
        "steps": 1,
    }
    named = any(each.startswith("objectives=") for each in settings)
    if found.has("scheduler") and not named:
        values["objectives"] = [objective_values(found.config("scheduler"))]
    elif not named:
        values["objectives"] = [{"kind": "ddpm", "schedule": _SD1}]
    said = override(values, settings)
    if not own and said["data"]["tokenizer"] == place.at("tokenizer.json"):
        learned = tokens.learn(["a picture"], 100).encode()
        later.append(lambda: storage.write(place.at("tokenizer.json"), learned))
    model = said["model"]
    if found.file and "first_stage" not in model:
        values["model"]["first_stage"] = _unpacked_stage(found, place, later)
    if found.file and not own and "text" not in model and "texts" not in model:
        values["model"] |= _unpacked_text(found, place, later, words)
    return values


def _unpacked_stage(
    found: Foreign, place: RunDir, later: list[Callable[[], None]]
) -> dict[str, Any]:
    """The autoencoder of a single file, as a folder of diffusers beside the run's checkpoint."""
    if not found.has("vae"):
        return first_stage_values(found, found.config("unet")["in_channels"])
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # for seconds

    config = found.config("vae")
    made: Any = AutoencoderKL.from_config(config)
    state = found.fitted("vae", made.state_dict())
    home = place.at("vae")
    later.append(lambda: _put(home, "diffusion_pytorch_model.safetensors", state, config))
    return {
        "kind": "autoencoder",
        "weights": home,
        "latent_channels": config["latent_channels"],
        "downsampling": 2 ** (len(config["block_out_channels"]) - 1),
    }


def _unpacked_text(
    found: Foreign, place: RunDir, later: list[Callable[[], None]], words: str | None
) -> dict[str, Any]:
    """CLIP's text encoder of a single file, as a folder of transformers beside the checkpoint."""
    if not found.has("text_encoder"):
        raise RecipeError(f"{found.url} has no text encoder. Name one: --set model.texts=[...]")
    home, words = place.at("text_encoder"), words or found.place("tokenizer")
    if words is None:
        raise RecipeError(
            f"{found.url} has CLIP's text encoder and no tokenizer. Say --tokenizer FOLDER, that "
            "of openai/clip-vit-large-patch14 for Stable Diffusion 1 (vocab.json and merges.txt)."
        )
    from transformers import CLIPTextConfig, CLIPTextModel  # for seconds

    config = found.config("text_encoder")
    made: Any = CLIPTextModel(CLIPTextConfig(**config))
    state = found.fitted("text_encoder", made.state_dict())
    later.append(lambda: _put(home, "model.safetensors", state, config))
    return frozen_text(config, home, storage.absolute(words), found.url)


def _put(home: str, name: str, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    kept = {key: value.contiguous() for key, value in state.items()}
    storage.write(storage.join(home, name), save(kept, metadata={"format": "pt"}))
    storage.write(storage.join(home, "config.json"), json.dumps(dict(config), indent=1).encode())


def _keep(place: RunDir, run: Run, task: Task) -> int:
    """Writes the task's weights as the run's checkpoint; returns how many numbers they are."""
    named = [(name, p.detach()) for name, p in task.named_parameters() if p.requires_grad]
    pieces = [(n, checkpoint.WEIGHT, 0, p.float().contiguous().view(-1)) for n, p in named]
    url = checkpoint.folder(place.url, run.steps)
    checkpoint.commit(
        place.url,
        run.steps,
        recipe=digest(run),
        base=checkpoint.base_digest(task),
        shapes={name: tuple(p.shape) for name, p in named},
        slices=put_slices(url, "imported.safetensors", pieces),
        extra={"imported": True},
    )
    return sum(p.numel() for _, p in named)
