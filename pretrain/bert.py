"""Names of BERT's parts in transformers, and words initialised from a folder of such a model.

L tokens, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data import storage
from ..errors import RecipeError
from . import stored

Names = dict[str, str]
"""Our name of a module -> transformers' name of it."""
_PLACED = ("roberta", "xlm-roberta", "camembert", "data2vec-text")
"""Their first place stands behind that of the padding."""
_ALIKE = ("bert", "electra", "ernie", "distilbert", *_PLACED)
"""Kinds of models whose layers are BERT's."""
_DISTIL = {
    "transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}
"""DistilBERT's names -> BERT's."""


def attention(ours: str, inner: str, output: str) -> Names:
    """An attention with its residual and norm: `inner` holds the queries, `output` the rest."""
    names = {f"{ours}.{part}": f"{inner}.{part}" for part in ("query", "key", "value")}
    return {**names, f"{ours}.out": f"{output}.dense", f"{ours}.norm": f"{output}.LayerNorm"}


def layer(ours: str, theirs: str) -> Names:
    """One of BERT's layers."""
    return {
        **attention(f"{ours}.attend", f"{theirs}.attention.self", f"{theirs}.attention.output"),
        **thought(ours, f"{theirs}.intermediate", f"{theirs}.output"),
    }


def thought(ours: str, inner: str, output: str) -> Names:
    """The perceptron of a layer with its norm."""
    return {
        f"{ours}.think.0": f"{inner}.dense",
        f"{ours}.think.2": f"{output}.dense",
        f"{ours}.norm": f"{output}.LayerNorm",
    }


def parameters(modules: Names) -> Names:
    """Our names of parameters -> theirs, for modules that have a weight and a bias."""
    kinds = ("weight", "bias")
    return {f"{ours}.{k}": f"{theirs}.{k}" for ours, theirs in modules.items() for k in kinds}


def folder_state(folder: str) -> dict[str, Tensor]:
    """The tensors of a folder of transformers, in 32 bits and by the names of today.

    Raises:
        CheckpointError: there are no safetensors weights, or they are damaged.
    """
    found: dict[str, Tensor] = {}
    for name, value in stored.state(folder).items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")  # as BERT's own file has it
        found[name.replace("LayerNorm.beta", "LayerNorm.bias")] = value.float()
    return found


def require_alike(url: str, said: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses settings with which the same weights compute something else.

    Args:
        url: of the settings.
        said: them.
        wanted: values that they must have, beside exact GELU and places that are added to words.

    Raises:
        RecipeError: one differs.
    """
    here = {**said, "hidden_act": said.get("hidden_act", said.get("activation", "gelu"))}
    if here["hidden_act"] == "gelu_python":
        here["hidden_act"] = "gelu"
    here["position_embedding_type"] = said.get("position_embedding_type") or "absolute"
    always = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, value in {**always, **wanted}.items():
        if here.get(name) != value:
            raise RecipeError(
                f"{url}: {name} is {here.get(name)!r} there and {value!r} in the model, where the "
                "same weights compute something else."
            )


def start_words(model: nn.Module, folder: str) -> list[str]:
    """Takes words, places and as many text layers as the model has from a BERT-like folder.

    Args:
        model: the module of `two_stream`, or of `single_stream` in its order `post`.
        folder: URL of what transformers' `save_pretrained` wrote of BERT, MiniLM, RoBERTa,
            DistilBERT, ...: its settings and safetensors are read and nothing else.

    Returns:
        The names of the parameters that were taken.

    Raises:
        RecipeError: it is no such folder, or its sizes are not the model's.
        CheckpointError: its weights are damaged, or not there.
        StorageError: it cannot be read.
    """
    if not hasattr(model, "embed") or getattr(model, "order", "post") != "post":
        raise RecipeError(
            "text_from needs the model 'two_stream', or 'single_stream' with order 'post': BERT's "
            "weights are of no use to others."
        )
    stack = "text_layers" if hasattr(model, "text_layers") else "layers"
    layers: Any = getattr(model, stack)
    theirs = _like_bert(folder, model, layers)
    names = {"embed.norm": "embeddings.LayerNorm"}
    for place in range(len(layers)):
        names |= layer(f"{stack}.{place}", f"encoder.layer.{place}")
    wanted = {**parameters(names), "embed.words.weight": "embeddings.word_embeddings.weight"}
    state = model.state_dict()
    try:
        taken = {ours: theirs[name] for ours, name in wanted.items()}
        places_LD = theirs["embeddings.position_embeddings.weight"]
        taken["embed.places"] = places_LD[: len(state["embed.places"])]
    except KeyError as err:
        raise RecipeError(
            f"{folder} has no {err}: it is not BERT-like, or has fewer layers than the model's "
            f"{len(layers)}."
        ) from err
    for name, value in taken.items():
        if value.shape != state[name].shape:
            raise RecipeError(
                f"{folder}: {name} is {tuple(value.shape)} there and {tuple(state[name].shape)} in "
                "the model. Use its width, inner width, tokens and tokenizer."
            )
    with torch.no_grad():
        model.load_state_dict(taken, strict=False)
    return sorted(taken)


def _like_bert(folder: str, model: Any, layers: Any) -> dict[str, Tensor]:
    """The weights of a folder by BERT's names, its first token type and the places of its padding
    taken into account.

    Raises:
        RecipeError: it is of another kind, or would compute something else.
    """
    url = storage.join(folder, "config.json")
    said = stored.settings(url)
    kind = said.get("model_type", "bert")
    if kind not in _ALIKE:
        raise RecipeError(
            f"{url}: a {kind!r} is not BERT-like; text_from takes {', '.join(_ALIKE)}."
        )
    here = {"layer_norm_eps": 1e-12, "num_attention_heads": said.get("n_heads"), **said}
    wanted: dict[str, Any] = {"layer_norm_eps": model.embed.norm.eps}
    if len(layers):
        wanted["num_attention_heads"] = layers[0].attend.heads
    require_alike(url, {"use_task_id": False, **here}, {"use_task_id": False, **wanted})
    found = _stripped(folder_state(folder))
    if kind == "distilbert":
        for theirs, berts in _DISTIL.items():
            found = {name.replace(theirs, berts): value for name, value in found.items()}
    places = "embeddings.position_embeddings.weight"
    if places in found:
        first = said.get("pad_token_id", 1) + 1 if kind in _PLACED else 0
        types_KD = found.get("embeddings.token_type_embeddings.weight", torch.zeros(1, 1))
        found[places] = found[places][first:] + types_KD[0]
    return found


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the name of the model that a head was put on, such as `bert.`."""
    marker = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(marker) for name in state if name.endswith(marker)]
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}
