"""Our weights as transformers' weights and back: LXMERT, VisualBERT, ViLT, BERT.

A family says which of our models it is, how its modules are called there, and which tensors are
sums of several of theirs. The mark of hidden regions (`hole`) has no place there: an import leaves
it zero, an export leaves it out. L tokens, N regions, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError
from ..pretrain import bert
from ..pretrain.bert import Names, attention, layer, thought
from ..pretrain.model import Model
from ..pretrain.models import SingleStream, TwoStream
from ..pretrain.visuals import Nothing, Patches, Regions

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One of transformers' models with the heads that it was pretrained with."""

    prefix: str
    """Of the model's own modules, those of heads aside."""
    bare: str
    """Class without heads."""
    headed: str
    """Class with the heads in `heads`."""
    heads: Mapping[str, Names]
    """Modules of each objective's head, by its kind; the bias over words aside."""
    word_bias: str
    modules: Callable[[Any], Names]
    """Of a model's record: our modules, below `model.`, by transformers' names."""
    fold: Callable[[State, Any], dict[str, Tensor]]
    """Their tensors that stand for no module -> ours."""
    unfold: Callable[[State], dict[str, Tensor]]
    """Ours -> theirs."""
    settings: Callable[[Any], dict[str, Any]]
    """Of a model's record: settings of their configuration beside the common ones."""
    outputs: Mapping[str, str]
    """Names of its logits by the kind of the objective."""
    pooled: str
    """Name of the pair's state."""
    features: str = ""
    """Name of the input for features of regions."""
    boxes: str = ""
    """Name of the input for their boxes."""
    bare_only: tuple[str, ...] = ()
    """Their modules that the class with heads has not."""
    swapped: bool = False
    """Whether the first class of matching means that the pair matches."""

    def config(self, model: Any, vocabulary: int) -> dict[str, Any]:
        """Settings of their configuration."""
        return {
            "vocab_size": vocabulary,
            "hidden_size": model.width,
            "num_attention_heads": model.heads,
            "intermediate_size": model.inner or 4 * model.width,
            "max_position_embeddings": model.tokens,
            "hidden_dropout_prob": model.dropout,
            "attention_probs_dropout_prob": model.dropout,
            "type_vocab_size": 2,
            "pad_token_id": 0,
            **self.settings(model),
        }

    def theirs(self, model: Any, ours: State) -> tuple[str, dict[str, Tensor]]:
        """(class, state) in transformers of a task's state."""
        headed = all(any(n.startswith(f"heads.{kind}.") for n in ours) for kind in self.heads)
        prefix = f"{self.prefix}." if headed else ""
        body = {name.removeprefix("model."): v for name, v in ours.items() if "model." in name[:6]}
        named = bert.parameters(self.modules(model))
        if headed:
            named = {here: there for here, there in named.items() if not self._dropped(there)}
        found = {prefix + named[name]: value for name, value in body.items() if name in named}
        found |= {prefix + name: value for name, value in self.unfold(body).items()}
        if not headed:
            return self.bare, found
        for kind in self.heads:
            names = bert.parameters(self.heads[kind])
            found |= {there: self._turned(kind, ours[here]) for here, there in names.items()}
        found[self.word_bias] = ours["heads.mlm.bias_V"]
        return self.headed, found

    def ours(self, model: Any, theirs: State) -> dict[str, Tensor]:
        """A task's state from one of transformers', heads included where it has them.

        Raises:
            ExportError: a tensor is missing there.
        """
        prefix = f"{self.prefix}." if any(n.startswith(f"{self.prefix}.") for n in theirs) else ""
        body = {name.removeprefix(prefix): v for name, v in theirs.items()}
        try:
            named = bert.parameters(self.modules(model))
            named = {h: t for h, t in named.items() if t in body or not self._dropped(t)}
            found = {f"model.{here}": body[there] for here, there in named.items()}
            found |= {f"model.{here}": value for here, value in self.fold(body, model).items()}
        except KeyError as err:
            raise ExportError(
                f"The weights have no {err}: they are not of {self.bare} with such sizes."
            ) from err
        for kind in self.heads:
            names = bert.parameters(self.heads[kind])
            if all(there in theirs for there in names.values()):
                found |= {here: self._turned(kind, theirs[there]) for here, there in names.items()}
                if kind == "mlm":
                    found["heads.mlm.bias_V"] = self._bias(theirs)
        return found

    def _bias(self, theirs: State) -> Tensor:
        """Of words; versions of transformers store it under one of two names.

        Raises:
            ExportError: there is none, or the output layer is not the embedding of words.
        """
        home = self.word_bias.removesuffix(".bias").removesuffix(".decoder")
        words = next(v for n, v in theirs.items() if n.endswith("word_embeddings.weight"))
        if not torch.equal(theirs.get(f"{home}.decoder.weight", words), words):
            raise ExportError(
                f"{home}.decoder.weight is not the embedding of words, as it is of a task here."
            )
        for name in (f"{home}.bias", f"{home}.decoder.bias"):
            if name in theirs:
                return theirs[name]
        raise ExportError(f"The weights have no {home}.bias.")

    def _dropped(self, there: str) -> bool:
        return there.startswith(self.bare_only) if self.bare_only else False

    def _turned(self, kind: str, value: Tensor) -> Tensor:
        return value.flip(0) if self.swapped and kind == "itm" else value


def family(model: Model) -> Family:
    """The family that a model's record belongs to.

    Raises:
        ExportError: transformers has no such model.
    """
    match model:
        case TwoStream(tied=True, pair="text", epsilon=1e-12, visual=Regions(geometry=4)):
            return LXMERT
        case SingleStream(whole=True):
            pass
        case SingleStream(order="post", visual=Regions(geometry=0)):
            return VISUAL_BERT
        case SingleStream(order="pre", visual=Patches(whole=True)):
            return VILT
        case SingleStream(order="post", visual=Nothing()):
            return BERT
        case _:
            pass
    raise ExportError(
        f"transformers has no model like this {model.kind!r}. It has LXMERT (two_stream, tied, "
        "visual regions with geometry 4), VisualBERT (single_stream, order post, visual regions "
        "with geometry 0, not whole), ViLT (single_stream, order pre, visual patches with whole) "
        "and BERT (single_stream, order post, visual none)."
    )


def _words(body: State, at: str, tokens: int) -> dict[str, Tensor]:
    """BERT's token type 0 is part of our places."""
    places_LD = body[f"{at}position_embeddings.weight"]
    if len(places_LD) < tokens:
        raise ExportError(f"The weights know {len(places_LD)} places of words, not {tokens}.")
    return {
        "embed.words.weight": body[f"{at}word_embeddings.weight"],
        "embed.places": places_LD[:tokens] + body[f"{at}token_type_embeddings.weight"][0],
    }


def _unwords(body: State, at: str) -> dict[str, Tensor]:
    width = body["embed.places"].shape[1]
    return {
        f"{at}word_embeddings.weight": body["embed.words.weight"],
        f"{at}position_embeddings.weight": body["embed.places"],
        f"{at}token_type_embeddings.weight": torch.zeros(2, width),
    }


def _head(ours: str, theirs: str) -> Names:
    return {f"{ours}.0": f"{theirs}.dense", f"{ours}.2": f"{theirs}.LayerNorm"}


# LXMERT.


def _lxmert_modules(model: TwoStream) -> Names:
    sees = "encoder.visn_fc."
    names = {
        "embed.norm": "embeddings.LayerNorm",
        "vision.project": f"{sees}visn_fc",
        "vision.norm": f"{sees}visn_layer_norm",
        "vision.place": f"{sees}box_fc",
        "vision.norm_place": f"{sees}box_layer_norm",
        "pool": "pooler.dense",
    }
    for place in range(model.text_depth):
        names |= layer(f"text_layers.{place}", f"encoder.layer.{place}")
    for place in range(model.visual_depth):
        names |= layer(f"visual_layers.{place}", f"encoder.r_layers.{place}")
    for place in range(model.cross_depth):
        ours, there = f"cross_layers.{place}", f"encoder.x_layers.{place}"
        both = f"{there}.visual_attention"
        names |= attention(f"{ours}.read", f"{both}.att", f"{both}.output")
        for side, short in (("text", "lang"), ("vision", "visn")):
            own = f"{there}.{short}_self_att"
            names |= attention(f"{ours}.{side}.attend", f"{own}.self", f"{own}.output")
            names |= thought(f"{ours}.{side}", f"{there}.{short}_inter", f"{there}.{short}_output")
    return names


def _lxmert_settings(model: Any) -> dict[str, Any]:
    return {
        "l_layers": model.text_depth,
        "r_layers": model.visual_depth,
        "x_layers": model.cross_depth,
        "visual_feat_dim": model.visual.values,
        "visual_pos_dim": 4,
        "task_obj_predict": False,
        "task_qa": False,
    }


_BERT_HEADS: dict[str, Names] = {
    "mlm": _head("heads.mlm.transform", "cls.predictions.transform"),
    "itm": {"heads.itm": "cls.seq_relationship"},
}

LXMERT = Family(
    prefix="lxmert",
    bare="LxmertModel",
    headed="LxmertForPreTraining",
    heads=_BERT_HEADS,
    word_bias="cls.predictions.bias",
    modules=_lxmert_modules,
    fold=lambda body, model: _words(body, "embeddings.", model.tokens),
    unfold=lambda body: _unwords(body, "embeddings."),
    settings=_lxmert_settings,
    outputs={"mlm": "prediction_logits", "itm": "cross_relationship_score"},
    pooled="pooled_output",
    features="visual_feats",
    boxes="visual_pos",
)


# VisualBERT.


def _visual_bert_modules(model: SingleStream) -> Names:
    names = {"embed.norm": "embeddings.LayerNorm", "pool": "pooler.dense"}
    for place in range(model.depth):
        names |= layer(f"layers.{place}", f"encoder.layer.{place}")
    return names


def _visual_bert_fold(body: State, model: Any) -> dict[str, Tensor]:
    """The image's token type and place are one vector for every region: part of our bias."""
    bias_D = (
        body["embeddings.visual_projection.bias"]
        + body["embeddings.visual_token_type_embeddings.weight"][1]
        + body["embeddings.visual_position_embeddings.weight"][0]
    )
    weight = body["embeddings.visual_projection.weight"]
    words = _words(body, "embeddings.", model.tokens)
    return {**words, "vision.project.weight": weight, "vision.project.bias": bias_D}


def _visual_bert_unfold(body: State) -> dict[str, Tensor]:
    return {
        **_unwords(body, "embeddings."),
        "embeddings.visual_projection.weight": body["vision.project.weight"],
        "embeddings.visual_projection.bias": body["vision.project.bias"],
        "embeddings.visual_token_type_embeddings.weight": torch.zeros(
            2, body["embed.places"].shape[1]
        ),
        "embeddings.visual_position_embeddings.weight": torch.zeros_like(body["embed.places"]),
    }


VISUAL_BERT = Family(
    prefix="visual_bert",
    bare="VisualBertModel",
    headed="VisualBertForPreTraining",
    heads=_BERT_HEADS,
    word_bias="cls.predictions.bias",
    modules=_visual_bert_modules,
    fold=_visual_bert_fold,
    unfold=_visual_bert_unfold,
    settings=lambda model: {
        "num_hidden_layers": model.depth,
        "visual_embedding_dim": model.visual.values,
        "layer_norm_eps": model.epsilon,
    },
    outputs={"mlm": "prediction_logits", "itm": "seq_relationship_logits"},
    pooled="pooler_output",
    features="visual_embeds",
    swapped=True,
)


# ViLT.


def _vilt_modules(model: SingleStream) -> Names:
    names = {
        "embed.norm": "embeddings.text_embeddings.LayerNorm",
        "vision.project": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "pool": "pooler.dense",
    }
    for place in range(model.depth):
        ours, there = f"layers.{place}", f"encoder.layer.{place}"
        for part in ("query", "key", "value"):
            names[f"{ours}.attend.{part}"] = f"{there}.attention.attention.{part}"
        names |= {
            f"{ours}.attend.out": f"{there}.attention.output.dense",
            f"{ours}.attend.norm": f"{there}.layernorm_before",
            f"{ours}.think.0": f"{there}.intermediate.dense",
            f"{ours}.think.2": f"{there}.output.dense",
            f"{ours}.norm": f"{there}.layernorm_after",
        }
    return names


def _vilt_fold(body: State, model: Any) -> dict[str, Tensor]:
    places_1ND = body["embeddings.position_embeddings"]
    return {
        **_words(body, "embeddings.text_embeddings.", model.tokens),
        "vision.whole": body["embeddings.cls_token"][0, 0] + places_1ND[0, 0],
        "vision.places": places_1ND[0, 1:],
        "sides": body["embeddings.token_type_embeddings.weight"][:2],
    }


def _vilt_unfold(body: State) -> dict[str, Tensor]:
    whole_D = body["vision.whole"]
    places_ND = torch.cat([torch.zeros_like(whole_D)[None], body["vision.places"]])
    return {
        **_unwords(body, "embeddings.text_embeddings."),
        "embeddings.cls_token": whole_D[None, None],
        "embeddings.position_embeddings": places_ND[None],
        "embeddings.token_type_embeddings.weight": body["sides"],
    }


VILT = Family(
    prefix="vilt",
    bare="ViltModel",
    headed="ViltForMaskedLM",
    heads={"mlm": _head("heads.mlm.transform", "mlm_score.transform")},
    word_bias="mlm_score.decoder.bias",
    modules=_vilt_modules,
    fold=_vilt_fold,
    unfold=_vilt_unfold,
    settings=lambda model: {
        "num_hidden_layers": model.depth,
        "image_size": model.image_size,
        "patch_size": model.visual.patch,
        "layer_norm_eps": model.epsilon,
        "modality_type_vocab_size": 2,
    },
    outputs={"mlm": "logits"},
    pooled="pooler_output",
)


# BERT.

BERT = Family(
    prefix="bert",
    bare="BertModel",
    headed="BertForMaskedLM",
    heads={"mlm": _head("heads.mlm.transform", "cls.predictions.transform")},
    word_bias="cls.predictions.bias",
    modules=_visual_bert_modules,
    fold=lambda body, model: _words(body, "embeddings.", model.tokens),
    unfold=lambda body: _unwords(body, "embeddings."),
    settings=lambda model: {
        "num_hidden_layers": model.depth,
        "layer_norm_eps": model.epsilon,
        "is_decoder": False,
    },
    outputs={"mlm": "logits"},
    pooled="pooler_output",
    bare_only=("pooler.",),
)
