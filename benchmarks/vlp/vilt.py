"""MLM, MRM and ITM of ViLT's shape: real texts padded to 40, 49 patches, 192 wide, 4 layers.

As ViLT and METER train, transformers makes a pass of the encoder for each objective; as Diptych
does, one for all. Both are done with both, so that it is seen what comes of that alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.finetune.interchange import VILT
from diptych.pretrain import bert
from diptych.pretrain.objective import Seen, View
from diptych.pretrain.task import Task

from .stock import VOCABULARY, Arm, batches, every_word, hidden, task

LENGTH, SIDE, PATCH = 40, 224, 32
MODEL = {"kind": "single_stream", "width": 192, "depth": 4, "heads": 4, "tokens": LENGTH}
MODEL |= {"image_size": SIDE, "visual": {"kind": "patches", "patch": PATCH}}
OBJECTIVES = [{"kind": "itm"}, {"kind": "mrm"}, {"kind": "mlm"}]
ALL = (("itm", "mrm", "mlm"),)
EACH = (("itm",), ("mrm",), ("mlm",))
"""Objectives by pass."""


def arms(count: int, rows: int) -> tuple[dict[str, Arm], float]:
    """(the arms by name, the share of real tokens)."""
    given = batches(count, rows, LENGTH, SIDE)
    patches = (SIDE // PATCH) ** 2 + 1
    words = sum(float(b.real_BL.float().sum(1).mean()) for b in given) / count

    def ours(packed: bool, passes: Sequence[tuple[str, ...]]) -> Arm:
        made = task({**MODEL, "packed": packed}, OBJECTIVES)

        def loss(number: int) -> Tensor:
            done = [made._losses(given[number], made._named(kinds)).total for kinds in passes]
            return torch.stack(done).sum()

        return Arm(made, loss)

    made = {
        "transformers": _theirs(given, EACH),
        "transformers, one pass": _theirs(given, ALL),
        "padded, three passes": ours(False, EACH),
        "packed, three passes": ours(True, EACH),
        "padded": ours(False, ALL),
        "packed": ours(True, ALL),
        "packed again": ours(True, ALL),
    }
    return made, (words + patches) / (LENGTH + patches)


class _Vilt(nn.Module):
    """Transformers' ViLT with its head for words, and ours for what it has none for."""

    def __init__(self, made: Task) -> None:
        super().__init__()
        config = transformers.ViltConfig(**VILT.config(made.spec, VOCABULARY))
        self.vilt: Any = transformers.ViltForMaskedLM(config)
        told = self.vilt.load_state_dict(VILT.theirs(made.spec, made.state_dict())[1], strict=False)
        self.vilt.tie_weights()
        assert not told.unexpected_keys and all("decoder" in k for k in told.missing_keys), told
        self.heads = nn.ModuleDict({kind: made.heads[kind] for kind in ("itm", "mrm")})

    def forward(self, view: View) -> Seen:
        """Its states. Patches are embedded here: transformers would shuffle them."""
        there, length = self.vilt.vilt, view.tokens_BL.shape[1]
        patches_BND = there.embeddings.patch_embeddings(view.image_BCHW).flatten(2).transpose(1, 2)
        whole_B1D = there.embeddings.cls_token.expand(len(patches_BND), -1, -1)
        patches_BND = torch.cat([whole_B1D, patches_BND], 1) + there.embeddings.position_embeddings
        said = there(
            input_ids=view.tokens_BL,
            attention_mask=view.real_BL.long(),
            image_embeds=patches_BND,
            pixel_mask=torch.ones(patches_BND.shape[:2], dtype=torch.long),
        )
        states_BSD = said.last_hidden_state
        return Seen(
            view=view,
            tokens_BLD=states_BSD[:, :length],
            regions_BND=states_BSD[:, length + 1 :],
            pooled_BD=said.pooler_output,
            word_weights_VD=there.embeddings.text_embeddings.word_embeddings.weight,
        )


def _theirs(given: Sequence[Batch], passes: Sequence[tuple[str, ...]]) -> Arm:
    made = task(MODEL, OBJECTIVES)
    views = [[hidden(made, batch, kinds) for kinds in passes] for batch in given]  # not timed
    model = _Vilt(made).train()
    objectives = {o.kind: o for o in made.objectives}

    def loss(number: int) -> Tensor:
        parts: list[Tensor] = []
        for kinds, view in zip(passes, views[number], strict=True):
            seen = model(view)
            for kind in kinds:
                if kind == "mlm":
                    logits_BLV = model.vilt.mlm_score(seen.tokens_BLD)
                    parts.append(every_word(logits_BLV, view.targets["mlm"], view.matched_B))
                    continue
                score = objectives[kind].score(model.heads[kind], seen)
                parts.append((score.loss_B * score.valid_B).sum() / len(score.loss_B))
        return torch.stack(parts).sum()

    return Arm(model, loss)


def names() -> dict[str, str]:
    """Our parameters -> those of `_Vilt`."""
    model: Any = task(MODEL, OBJECTIVES).spec
    named = bert.parameters(VILT.modules(model))
    found = {f"model.{ours}": f"vilt.vilt.{theirs}" for ours, theirs in named.items()}
    found |= {n: f"vilt.{t}" for n, t in bert.parameters(VILT.heads["mlm"]).items()}
    found |= {
        "model.embed.words.weight": "vilt.vilt.embeddings.text_embeddings.word_embeddings.weight",
        "heads.mlm.bias_V": "vilt.mlm_score.decoder.bias",
    }
    return found
