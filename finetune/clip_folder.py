"""A folder of open_clip to start from: what its settings are in a recipe, and its weights.

    start_from: s3://my-bucket/clip        # open_clip_config.json, open_clip_model.safetensors

What `diptych export --to open_clip` wrote is such a folder, and so is any other whose towers are of
the model `clip`'s form and whose tokenizer is BERT-like. Pickles are never opened.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..data import storage
from ..errors import CheckpointError
from ..pretrain.models import Clip

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
SCALE = "heads.contrastive.log_scale"
_FREE = {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "pad_id", "vocab_size"}
_FREE |= {"eos_id", "output_tokens", "patch_dropout"}
_FREE |= {"timm_model_pretrained", "hf_model_pretrained"}
"""Settings that change no number of these towers, or that the recipe's tokenizer decides."""


def holds(folder: str) -> bool:
    """Whether there is such a folder at a URL."""
    return storage.exists(storage.join(folder, CONFIG))


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with what they leave out: model, objective, tokenizer.

    What the recipe says stays. Unchanged where `start_from` is anything else.

    Raises:
        CheckpointError: the folder is damaged, or its towers are of another form.
    """
    source, model = values.get("start_from"), values.get("model", {"kind": Clip.kind})
    if not isinstance(source, str) or not isinstance(model, dict):
        return values
    if model.get("kind") != Clip.kind or not holds(storage.absolute(source)):
        return values
    folder = storage.absolute(source)
    filled = {**values, "model": {**_record(folder, _settings(folder)["model_cfg"]), **model}}
    filled.setdefault("objectives", [{"kind": "contrastive"}])
    data, own = values.get("data", {}), storage.join(folder, "tokenizer.json")
    if isinstance(data, dict) and "tokenizer" not in data and storage.exists(own):
        filled["data"] = {**data, "tokenizer": own}
    return filled


def read(folder: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(a record of the model, a task's state) of a folder of open_clip: safetensors and nothing
    else are read.

    Pictures are seen by this house from -1 to 1; another mean and deviation of the folder go into
    the weights that see first.

    Raises:
        CheckpointError: it is no such folder, or its towers are of another form.
        StorageError: it cannot be read.
    """
    settings = _settings(folder)
    record = _record(folder, settings["model_cfg"])
    try:
        weights = load(storage.read(storage.join(folder, WEIGHTS)))
        scale = weights.pop("logit_scale")
        _see(weights, settings.get("preprocess_cfg") or {})
    except (KeyError, ValueError, SafetensorError) as err:
        raise CheckpointError(f"{folder}/{WEIGHTS} holds no CLIP of open_clip: {err!r}") from err
    named = {f"model.{name}": value.float() for name, value in weights.items()}
    return record, {**named, SCALE: scale.float().reshape(1)}


def require_end(folder: str, end: int) -> None:
    """Refuses a tokenizer that ends a text with another id than the one whose state stands for it.

    Raises:
        CheckpointError: it does.
    """
    from open_clip.model import CLIPTextCfg  # imports for seconds

    theirs = _settings(folder)["model_cfg"]["text_cfg"].get("eos_id", CLIPTextCfg.eos_id)
    if theirs != end:
        raise CheckpointError(
            f"{folder}/{CONFIG}: a text ends with the id {theirs} (text_cfg.eos_id), and the run's "
            f"tokenizer ends it with {end}. Use the tokenizer that the model was trained with."
        )


def _settings(folder: str) -> dict[str, Any]:
    try:
        found: Any = json.loads(storage.read(storage.join(folder, CONFIG)))
        assert isinstance(found["model_cfg"], dict), "model_cfg is no object"
    except (ValueError, KeyError, TypeError, AssertionError) as err:
        raise CheckpointError(f"{folder}/{CONFIG} is not open_clip's: {err!r}") from err
    return found


def _record(folder: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's `model`, once it is sure that it says it all."""
    try:
        vision, words = config["vision_cfg"], config["text_cfg"]
        record = {
            "kind": Clip.kind,
            "width": words["width"],
            "heads": words["heads"],
            "depth": words["layers"],
            "tokens": words["context_length"],
            "visual_width": vision["width"],
            "visual_heads": vision["width"] // vision.get("head_width", 64),
            "visual_depth": vision["layers"],
            "patch": vision["patch_size"],
            "image_size": vision["image_size"],
        }
        ours = Clip(**{name: value for name, value in record.items() if name != "kind"})
        other = _other(config, ours.settings(words.get("vocab_size", 49408), 0))
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(
            f"{folder}/{CONFIG}: its towers are not of the model 'clip': {err!r}"
        ) from err
    if other:
        name, theirs, wanted = other
        raise CheckpointError(
            f"{folder}/{CONFIG}: {name} is {theirs!r}; of the towers of the model 'clip' it is "
            f"{wanted!r}. Such a model cannot be started from."
        )
    return record


def _other(config: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting in which the towers differ from ours: its name, theirs, ours."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg  # imports for seconds

    more = {"quick_gelu": False, "custom_text": False, **{k: config[k] for k in config}}
    sides = [("", {**more, "embed_dim": config["embed_dim"]}, {"embed_dim": ours["embed_dim"]})]
    sides[0][2].update(quick_gelu=False, custom_text=False)
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        theirs, wanted = (dataclasses.asdict(kind(**side[name])) for side in (config, ours))
        sides.append((f"{name}.", theirs, wanted))
    for prefix, theirs, wanted in sides:
        for name, value in wanted.items():
            if name not in _FREE and theirs[name] != value:
                return prefix + name, theirs[name], value
    return None


def _see(weights: dict[str, Tensor], look: Mapping[str, Any]) -> None:
    """Has the patches see pixels from -1 to 1 instead of (x - mean) / deviation.

    w (x - m) / s = (w / 2s) y + sum w (1/2 - m) / s with y = 2 x - 1; the sum is the same for every
    patch, and goes to where the patches' places are added.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # imports for seconds

    mean_C = torch.tensor(look.get("mean") or OPENAI_DATASET_MEAN)
    deviation_C = torch.tensor(look.get("std") or OPENAI_DATASET_STD)
    if bool((mean_C == 0.5).all()) and bool((deviation_C == 0.5).all()):
        return
    conv_DCPP, places_ND = (
        weights[f"visual.{name}"].double() for name in ("conv1.weight", "positional_embedding")
    )
    scaled_DCPP = conv_DCPP / deviation_C.double()[:, None, None]
    same_D = torch.einsum("dcpq,c->d", scaled_DCPP, 0.5 - mean_C.double())
    weights["visual.conv1.weight"] = (scaled_DCPP / 2).float()
    shifted_ND = torch.cat([places_ND[:1], places_ND[1:] + same_D])
    weights["visual.positional_embedding"] = shifted_ND.float()
