"""Names of BERT's parts in transformers, and words initialised from a folder of such a model.

L tokens, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..data import storage
from ..errors import RecipeError

Names = dict[str, str]
"""Our name of a module -> transformers' name of it."""


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


def start_words(model: nn.Module, folder: str) -> list[str]:
    """Takes words, places and as many text layers as the model has from a BERT-like folder.

    Args:
        model: the module of `two_stream`, or of `single_stream` in its order `post`.
        folder: URL of what transformers' `save_pretrained` wrote of BERT, MiniLM, ...: its
            model.safetensors is read and nothing else.

    Returns:
        The names of the parameters that were taken.

    Raises:
        RecipeError: it is no such file, or its sizes are not the model's.
        StorageError: it cannot be read.
    """
    if not hasattr(model, "embed") or getattr(model, "order", "post") != "post":
        raise RecipeError(
            "text_from needs the model 'two_stream', or 'single_stream' with order 'post': BERT's "
            "weights are of no use to others."
        )
    file = storage.join(folder, "model.safetensors")
    try:
        theirs = _stripped(load(storage.read(file)))
    except SafetensorError as err:
        raise RecipeError(f"{file} is damaged: {err}. Fetch it again.") from err
    stack = "text_layers" if hasattr(model, "text_layers") else "layers"
    layers: Any = getattr(model, stack)
    names = {"embed.norm": "embeddings.LayerNorm"}
    for place in range(len(layers)):
        names |= layer(f"{stack}.{place}", f"encoder.layer.{place}")
    wanted = {**parameters(names), "embed.words.weight": "embeddings.word_embeddings.weight"}
    state = model.state_dict()
    try:
        taken = {ours: theirs[name] for ours, name in wanted.items()}
        length = len(state["embed.places"])
        places_LD = theirs["embeddings.position_embeddings.weight"][:length]
        taken["embed.places"] = places_LD + theirs["embeddings.token_type_embeddings.weight"][0]
    except KeyError as err:
        raise RecipeError(
            f"{file} has no {err}: it is not BERT-like, or has fewer layers than the model's "
            f"{len(layers)}."
        ) from err
    for name, value in taken.items():
        if value.shape != state[name].shape:
            raise RecipeError(
                f"{file}: {name} is {tuple(value.shape)} there and {tuple(state[name].shape)} in "
                "the model. Use its width, inner width and tokenizer."
            )
    with torch.no_grad():
        model.load_state_dict(taken, strict=False)
    return sorted(taken)


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the name of the model that a head was put on, such as `bert.`."""
    marker = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(marker) for name in state if name.endswith(marker)]
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}
