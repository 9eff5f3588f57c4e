"""Token states of any transformers text encoder: CLIP, T5, BERT and others, from a local folder.

B rows, L tokens, D width. Only real tokens are kept: with padding to CLIP's 77, a caption of twelve
tokens would outweigh its image's latents ten times.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ...data.cache import Side
from ...errors import RecipeError
from ..encoder import Apply, Encoder, Rows
from ..frozen import require_loaded, whole


class Text(Encoder):
    """`text` (L, D), special tokens included."""

    kind: ClassVar[str] = "text"
    reads: ClassVar[tuple[Side, ...]] = ("text",)
    weights: str
    """A folder that transformers' `save_pretrained` wrote, such as `text_encoder/`."""
    tokenizer: str | None = None
    """The tokenizer's folder, if it is another one."""
    tokens: int = Field(default=77, ge=1)
    """Longer texts are cut, special tokens included."""
    padded: bool = False
    """Read the padding up to `tokens` like words, and hand it on, as Stable Diffusion does."""
    layer: int = -1
    """Whose states: -1 the model's output; -2 the last but one layer's, as SDXL takes CLIP's."""

    _whole = field_validator("weights", "tokenizer")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {
            "weights": self.weights,
            **({"tokenizer": self.tokenizer} if self.tokenizer else {}),
        }

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        from transformers import AutoTokenizer  # imports for seconds

        words = AutoTokenizer.from_pretrained(
            str(folders.get("tokenizer", folders["weights"])),
            local_files_only=True,
            trust_remote_code=False,
        )
        words.padding_side = "right"
        if words.pad_token is None:
            words.pad_token = words.eos_token
        model = _model(folders["weights"]).float().to(device).eval()
        most = getattr(model.config, "max_position_embeddings", None) or self.tokens
        if self.tokens > most:
            raise RecipeError(
                f"{self.weights} reads at most {most} tokens, not {self.tokens}. Lower `tokens`."
            )

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            found = words(
                list(texts),
                padding="max_length" if self.padded else True,
                truncation=True,
                max_length=self.tokens,
                return_tensors="pt",
            ).to(device)
            real_BL = found["attention_mask"]
            if self.padded:
                real_BL = torch.ones_like(real_BL)
            seen = model(
                input_ids=found["input_ids"],
                attention_mask=real_BL,
                output_hidden_states=self.layer != -1,
            )
            last = self.layer == -1
            text_BLD = seen.last_hidden_state if last else seen.hidden_states[self.layer]
            lengths = real_BL.sum(1).tolist()
            return {"text": [row[:length] for row, length in zip(text_BLD, lengths, strict=True)]}

        return apply


def _model(folder: Path) -> Any:
    """The text encoder of a folder; of a two-tower or encoder-decoder model, the half that reads.

    A pooler is not used, so that its weights may be missing.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    try:
        model, told = AutoModelForTextEncoding.from_pretrained(str(folder), **options)
    except ValueError:  # its configuration is not of a text encoder alone
        model, told = AutoModel.from_pretrained(str(folder), **options)
        model = getattr(model, "text_model", model)
    require_loaded(told["missing_keys"], but="pooler.")
    return model
