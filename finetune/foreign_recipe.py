"""What the settings of a diffusers folder are in a recipe, for all that the recipe leaves out."""

from collections.abc import Mapping
from typing import Any

from ..data import storage, tokens
from ..errors import CheckpointError, DataError, RecipeError
from .foreign import Foreign, open_foreign

_PREDICTS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
_SHAPES = {"squaredcos_cap_v2": "cosine"}
_SET = {
    "in_channels": "model.first_stage",
    "out_channels": "model.first_stage",
    "block_out_channels": "model.channels",
    "layers_per_block": "model.layers",
    "down_block_types": "model.attends",
    "up_block_types": "model.attends",
    "cross_attention_dim": "model.width",
    "attention_head_dim": "model.heads",
    "norm_num_groups": "model.groups",
    "num_class_embeds": "model.classes",
    "resnet_time_scale_shift": "model.norm",
}
"""Settings of diffusers' U-Net that a recipe decides."""
_FREE = ("sample_size", "num_attention_heads", "upcast_attention")
"""Settings that change no number here."""


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with what they leave out, read from the folder they start from.

    Sizes of the model, its first stage and text encoder, the objective with its schedule, and the
    tokenizer; what the recipe says stays. Unchanged where `start_from` is a run of ours.

    Raises:
        CheckpointError: the folder is damaged, or a pickle.
        RecipeError: it does not say what the recipe must then say.
    """
    source = values.get("start_from")
    model = values.get("model", {"kind": "unet"})
    if not isinstance(source, str) or not isinstance(model, dict) or model.get("kind") != "unet":
        return values
    found = open_foreign(storage.absolute(source))
    if found is None:
        return values
    found.require()
    data = values.get("data", {})
    filled = {**values, "model": model_values(found, model)}
    if "objectives" not in values and found.has("scheduler"):
        filled["objectives"] = [objective_values(found.config("scheduler"))]
    if isinstance(data, dict) and "tokenizer" not in data and (own := words_of(found)):
        filled["data"] = {**data, "tokenizer": own}
    return filled


def model_values(found: Foreign, said: Mapping[str, Any]) -> dict[str, Any]:
    """A `unet` with all that it must say to be that of the folder.

    Raises:
        RecipeError: the folder has no first stage, or is not of one kind of U-Net.
    """
    config = found.config("unet")
    read = {
        "kind": "unet",
        "channels": config["block_out_channels"],
        "layers": config["layers_per_block"],
        "heads": _heads(config),
        "groups": config["norm_num_groups"],
        "width": config["cross_attention_dim"],
        "norm": "scale_shift" if config.get("resnet_time_scale_shift") == "scale_shift" else "add",
        "attends": [each == "CrossAttnDownBlock2D" for each in config["down_block_types"]],
    }
    for name in ("layers", "heads", "width"):
        if name not in said and not isinstance(read[name], int):
            raise RecipeError(
                f"{found.url}: its unet/config.json has {name} of {read[name]!r}; here all levels "
                "have the same number, as in Stable Diffusion 1."
            )
    stage = said.get("first_stage") or first_stage_values(found, config["in_channels"])
    side = config.get("sample_size")
    if isinstance(side, int):
        read["image_size"] = side * _factor(stage)
    if "text" not in said and "texts" not in said and found.has("text_encoder"):
        read |= text_values(found)
    return {**read, "first_stage": stage, **said}


def first_stage_values(found: Foreign, channels: int) -> dict[str, Any]:
    """The frozen autoencoder of a folder, where it lies.

    Raises:
        RecipeError: there is none in a form that is read in place.
    """
    home = found.place("vae")
    if not found.has("vae") and channels == 3:
        return {"kind": "pixels"}
    if not found.has("vae") or found.file or home is None:
        how = (
            "`diptych import` unpacks it"
            if found.has("vae")
            else "it has none: name what it was trained with, such as {kind: taef2, ...}"
        )
        raise RecipeError(
            f"{found.url}: the recipe names no model.first_stage, and of this source {how}."
        )
    config = found.config("vae")
    return {
        "kind": "vq" if config.get("_class_name") == "VQModel" else "autoencoder",
        "weights": home,
        "latent_channels": config["latent_channels"],
        "downsampling": 2 ** (len(config["block_out_channels"]) - 1),
    }


def text_values(found: Foreign) -> dict[str, Any]:
    """The text encoder: trained on (`text: clip`) where its tokenizer is one of ours, else frozen.

    Raises:
        RecipeError: no class of transformers reads it, or its tokenizer is not there.
    """
    config = found.config("text_encoder")
    if words_of(found):
        return {
            "text": "clip",
            "tokens": config["max_position_embeddings"],
            "text_depth": config["num_hidden_layers"],
        }
    home, words = found.place("text_encoder"), found.place("tokenizer")
    if found.file or home is None or words is None:
        raise RecipeError(
            f"{found.url} has a text encoder and no tokenizer beside it. `diptych import` unpacks "
            "it, with --tokenizer FOLDER; or name frozen encoders: model.texts."
        )
    return frozen_text(config, home, words, found.url)


def frozen_text(config: Mapping[str, Any], home: str, words: str, url: str) -> dict[str, Any]:
    """A folder's encoder as `model.texts`, its padding read as Stable Diffusion does."""
    if not str(config.get("model_type", "")).startswith("clip"):
        raise RecipeError(
            f"{url}: its text encoder is a {config.get('_class_name') or config.get('model_type')},"
            " which is not CLIP's. Name frozen encoders in the recipe: model.texts."
        )
    most = config["max_position_embeddings"]
    encoder = {"kind": "text", "weights": home, "tokenizer": words, "tokens": most, "padded": True}
    return {"texts": [{"encoder": encoder, "width": config["hidden_size"]}]}


def objective_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The objective that a scheduler draws from.

    Raises:
        RecipeError: it draws from none that there is.
    """
    name = config.get("_class_name", "")
    if config.get("use_dynamic_shifting"):
        raise RecipeError(
            f"scheduler {name}: it shifts time by the size of an image (use_dynamic_shifting), and "
            "a flow here by one number. Name objectives: [{kind: flow, shift: ...}]."
        )
    if config.get("use_flow_sigmas") or str(name).startswith("FlowMatch"):
        return {"kind": "flow", "shift": config.get("flow_shift", config.get("shift", 1.0))}
    if config.get("trained_betas"):
        raise RecipeError(
            f"scheduler {name}: it lists its betas (trained_betas), and no schedule here is such a "
            "list. Name objectives, with the schedule that comes nearest."
        )
    predict = config.get("prediction_type", "epsilon")
    if predict not in _PREDICTS:
        raise RecipeError(f"scheduler {name}: nothing here predicts {predict!r}. Name objectives.")
    shape = config.get("beta_schedule", "linear")
    return {
        "kind": "ddpm",
        "predict": _PREDICTS[predict],
        "schedule": {
            "shape": _SHAPES.get(shape, shape),
            "steps": config.get("num_train_timesteps", 1000),
            "beta_start": config.get("beta_start", 1e-4),
            "beta_end": config.get("beta_end", 0.02),
            "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr")),
        },
    }


def words_of(found: Foreign) -> str | None:
    """The URL of its tokenizer.json, where it is one that recipes take."""
    home = found.place("tokenizer")
    url = storage.join(home, "tokenizer.json") if home else None
    if url is None or not storage.exists(url):
        return None
    try:
        tokens.load(url, 8)
    except DataError:  # CLIP's own has other special tokens
        return None
    return url


def require_like(found: Foreign, ours: Mapping[str, Any]) -> None:
    """Holds the U-Net's settings against those of the recipe's: equal shapes may compute otherwise.

    Raises:
        CheckpointError: naming the setting, both values, and what to set.
    """
    theirs = found.config("unet")
    theirs = {**theirs, "attention_head_dim": _heads(theirs)}
    for name, value in ours.items():
        other = theirs.get(name, value)
        if name.startswith("_") or name in _FREE or _same(value, other):
            continue
        fix = f"Set {_SET[name]} so, or leave it out of the recipe." if name in _SET else ""
        raise CheckpointError(
            f"{found.url}: its unet/config.json says {name}={other!r}, the recipe's model has "
            f"{value!r}. {fix or 'Only U-Nets of the kind of Stable Diffusion 1 are started from.'}"
        )


def _heads(config: Mapping[str, Any]) -> Any:
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    return heads[0] if isinstance(heads, list | tuple) and len(set(heads)) == 1 else heads


def _factor(stage: Any) -> int:
    kind = stage.get("kind") if isinstance(stage, Mapping) else None
    if kind in ("autoencoder", "vq"):
        return int(stage.get("downsampling", {"autoencoder": 8, "vq": 4}[kind]))
    return 8 if kind == "taef2" else 1


def _same(one: Any, other: Any) -> bool:
    listed = [list(v) if isinstance(v, list | tuple) else v for v in (one, other)]
    return listed[0] == listed[1]
