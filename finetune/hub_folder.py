"""A folder of transformers to start from: LXMERT, VisualBERT, ViLT or BERT.

    start_from: s3://my-bucket/lxmert      # config.json, model.safetensors or its shards

What `diptych export --to transformers` wrote is such a folder. Settings of the model, heads that
are there and the tokenizer are read in it; pickles are never opened.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..data import storage
from ..errors import CheckpointError, ExportError, RecipeError
from ..pretrain import stored
from ..pretrain.bert import folder_state, require_alike
from ..pretrain.models import SingleStream, TwoStream
from ..pretrain.task import Task
from .interchange import BERT, LXMERT, VILT, VISUAL_BERT, Family, family

FAMILIES: Mapping[str, Family] = {
    "bert": BERT,
    "lxmert": LXMERT,
    "vilt": VILT,
    "visual_bert": VISUAL_BERT,
}
"""By what transformers calls them."""
_FREE = {"vocab_size", "max_position_embeddings", "type_vocab_size", "modality_type_vocab_size"}
_FREE |= {"hidden_dropout_prob", "attention_probs_dropout_prob", "pad_token_id"}
_FREE |= {"task_obj_predict", "task_qa", "is_decoder"}
"""Settings that change no number of the model, or that the shapes of tensors say."""
_KINDS = (SingleStream.kind, TwoStream.kind)
_SIZES = {"kind", "width", "inner", "heads", "tokens", "epsilon", "visual"}
_ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"is_decoder": False},
    "lxmert": {},
    "vilt": {"qkv_bias": True, "num_channels": 3},
    "visual_bert": {"bypass_transformer": False},
}
_OWN = ("model.pool.", "model.share_")
"""What may begin as it is drawn: BERT for masked words has no pooler, and none a shared space."""


def holds(folder: str) -> bool:
    """Whether there is a folder of transformers at a URL."""
    url = storage.join(folder, "config.json")
    return storage.exists(url) and "model_type" in stored.settings(url)


def require(folder: str) -> None:
    """Says now, without reading weights, what can be known to be wrong.

    Raises:
        CheckpointError: there are no safetensors weights, or it is none of the four.
    """
    _settings(folder)
    stored.files(folder)


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with what they leave out: model, objectives, tokenizer.

    What the recipe says stays. Unchanged where `start_from` is anything else.

    Raises:
        CheckpointError: the folder is damaged, or of another model.
    """
    source, model = values.get("start_from"), values.get("model", {})
    if not isinstance(source, str) or not isinstance(model, dict):
        return values
    if model.get("kind", _KINDS[0]) not in _KINDS or model.keys() >= _SIZES:
        return values  # nothing is left out, as in a recipe by its name
    folder = storage.absolute(source)
    if not holds(folder):
        return values
    theirs = _settings(folder)
    record = _record(theirs)
    if model.get("kind", record["kind"]) != record["kind"]:
        return values  # `weights` says what is wrong
    visual = model.get("visual", {})
    if (
        isinstance(visual, dict)
        and visual.get("kind", record["visual"]["kind"]) == (record["visual"]["kind"])
    ):
        model = {**model, "visual": {**record["visual"], **visual}}
    filled = {**values, "model": {**record, **model}}
    heads = FAMILIES[theirs["model_type"]].heads
    filled.setdefault("objectives", [{"kind": kind} for kind in sorted(heads)])
    data, own = values.get("data", {}), storage.join(folder, "tokenizer.json")
    if isinstance(data, dict) and "tokenizer" not in data and storage.exists(own):
        filled["data"] = {**data, "tokenizer": own}
    return filled


def weights(task: Task, folder: str) -> dict[str, Tensor]:
    """What a folder holds of the task's model and heads, by the task's names.

    Raises:
        CheckpointError: it is of another model, or of other settings.
    """
    theirs, url = _settings(folder), storage.join(folder, "config.json")
    there = FAMILIES[theirs["model_type"]]
    try:
        if family(task.spec) is not there:
            raise RecipeError(f"{url}: of a {theirs['model_type']}, which the model is not.")
        ours = there.config(task.spec, task.words.size).items()
        wanted = {name: value for name, value in ours if name not in _FREE}
        require_alike(url, theirs, {**_ALWAYS[theirs["model_type"]], **wanted})
        found = there.ours(task.spec, folder_state(folder))
    except (ExportError, RecipeError) as err:
        raise CheckpointError(
            f"{err} Whatever the recipe's `model` leaves out is read in the folder."
        ) from err
    for name, value in task.state_dict().items():
        if name.endswith(".hole"):  # regions are never hidden there
            found[name] = value.new_zeros(value.shape)
        elif name.startswith(_OWN):
            found.setdefault(name, value)
    return found


def _settings(folder: str) -> dict[str, Any]:
    """All settings of a folder's config.json, those that it leaves out as transformers has them."""
    url = storage.join(folder, "config.json")
    said = stored.settings(url)
    kind: Any = said.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{url}: a {kind!r} cannot be started from; of transformers {', '.join(FAMILIES)} can."
        )
    import transformers  # imports for seconds

    maker: Any = getattr(transformers, FAMILIES[kind].bare).config_class
    try:
        return {**said, **maker.from_dict(dict(said)).to_dict()}
    except Exception as err:  # whatever its validation raises
        raise CheckpointError(
            f"{url} is not transformers' settings of {kind}: {' '.join(str(err).split())[:300]}"
        ) from err


def _record(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's `model`."""
    kind = theirs["model_type"]
    common = {
        "width": theirs["hidden_size"],
        "inner": theirs["intermediate_size"],
        "heads": theirs["num_attention_heads"],
        "tokens": theirs["max_position_embeddings"],
        "dropout": theirs["hidden_dropout_prob"],
    }
    if kind == "lxmert":
        depths = {"text_depth": "l_layers", "visual_depth": "r_layers", "cross_depth": "x_layers"}
        sees = {"kind": "regions", "values": theirs["visual_feat_dim"], "geometry": 4}
        own = {name: theirs[setting] for name, setting in depths.items()}
        return {"kind": "two_stream", **common, **own, "visual": sees}
    common |= {"depth": theirs["num_hidden_layers"], "epsilon": theirs["layer_norm_eps"]}
    if kind == "vilt":
        sees = {"kind": "patches", "patch": theirs["patch_size"], "whole": True}
        size = {"image_size": theirs["image_size"]}
        return {"kind": "single_stream", "order": "pre", **common, **size, "visual": sees}
    sees = {"kind": "none"}
    if kind == "visual_bert":
        sees = {"kind": "regions", "values": theirs["visual_embedding_dim"], "geometry": 0}
    return {"kind": "single_stream", "order": "post", **common, "visual": sees}
