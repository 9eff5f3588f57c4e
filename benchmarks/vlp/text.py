"""The text stream: MLM of real texts padded to 64, 192 wide, 4 layers, 8,000 words."""

from typing import Any

import transformers
from torch import Tensor

from diptych.finetune.interchange import BERT
from diptych.pretrain import bert
from diptych.pretrain.task import Task

from .stock import VOCABULARY, Arm, batches, every_word, hidden, task

LENGTH = 64
MODEL = {"kind": "single_stream", "width": 192, "depth": 4, "heads": 4, "order": "post"}
MODEL |= {"tokens": LENGTH, "image_size": 8, "visual": {"kind": "none"}}


def arms(count: int, rows: int) -> tuple[dict[str, Arm], float]:
    """(the arms by name, the share of real tokens)."""
    given = batches(count, rows, LENGTH, 8)
    fill = sum(float(b.real_BL.float().mean()) for b in given) / count

    def ours(packed: bool, full: bool = False) -> Arm:
        made = task({**MODEL, "packed": packed}, [{"kind": "mlm"}])

        def every(number: int) -> Tensor:
            view = hidden(made, given[number], ("mlm",))
            seen = made.model(view)
            logits = made.heads["mlm"](seen.tokens_BLD, seen.word_weights_VD)
            return every_word(logits, view.targets["mlm"], view.matched_B)

        return Arm(made, every if full else lambda number: made(given[number]).total)

    def theirs(attention: str) -> Arm:
        made = task(MODEL, [{"kind": "mlm"}])
        views = [hidden(made, batch, ("mlm",)) for batch in given]  # not timed
        model = _bert(made, attention)

        def loss(number: int) -> Tensor:
            view = views[number]
            said = model(input_ids=view.tokens_BL, attention_mask=view.real_BL.long())
            return every_word(said.logits, view.targets["mlm"], view.matched_B)

        return Arm(model, loss)

    made = {
        "transformers": theirs("sdpa"),
        "transformers eager": theirs("eager"),
        "padded, head everywhere": ours(False, full=True),
        "padded": ours(False),
        "packed": ours(True),
        "packed again": ours(True),
    }
    return made, fill


def names() -> dict[str, str]:
    """Our parameters -> transformers'."""
    model: Any = task(MODEL, [{"kind": "mlm"}]).spec
    found = {f"model.{n}": f"bert.{t}" for n, t in bert.parameters(BERT.modules(model)).items()}
    found |= bert.parameters(BERT.heads["mlm"])
    found |= {
        "model.embed.words.weight": "bert.embeddings.word_embeddings.weight",
        "model.embed.places": "bert.embeddings.position_embeddings.weight",
        "heads.mlm.bias_V": "cls.predictions.bias",
    }
    return found


def _bert(made: Task, attention: str) -> Any:
    settings = BERT.config(made.spec, VOCABULARY)
    kind: Any = transformers.BertConfig
    config = kind(**settings, attn_implementation=attention)
    model: Any = transformers.BertForMaskedLM(config)
    told = model.load_state_dict(BERT.theirs(made.spec, made.state_dict())[1], strict=False)
    model.tie_weights()
    assert not told.unexpected_keys and all("decoder" in key for key in told.missing_keys), told
    return model.train()
