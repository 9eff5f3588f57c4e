"""Token states of the text tower of an open_clip model, from a folder that open_clip itself saved.

B rows, L tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data.cache import Side
from ...errors import RecipeError
from ..encoder import Apply, Rows
from ..open_clip_folder import OfOpenClip, opened


class OpenClipText(OfOpenClip):
    """`text` (L, D) of CLIP's own tower, SigLIP's, CoCa's, or a transformers one in open_clip."""

    kind: ClassVar[str] = "open_clip_text"
    reads: ClassVar[tuple[Side, ...]] = ("text",)
    padded: bool = False
    """Hand the states of padding on too, as Stable Diffusion 2 does; else those of a text's tokens,
    its end included, as they are in the padded row: the tower itself always reads its padding."""
    layer: int = -1
    """Whose states: -1 the last block's; -2 the last but one's, as Stable Diffusion 2 and SDXL."""
    normed: bool = True
    """Put an earlier layer's states through the tower's last norm, as Stable Diffusion 2 does, and
    SDXL does not. Those of the last layer always are."""

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        model, words = opened(folders["weights"], device)
        read = _reader(model, self.layer, self.normed or self.layer == -1)
        pad = _pad(model, words)

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            tokens_BL = words(list(texts)).to(device)
            text_BLD = read(tokens_BL)
            if self.padded:
                return {"text": text_BLD}
            lengths = [_length(row, pad) for row in tokens_BL]
            return {"text": [row[:n] for row, n in zip(text_BLD, lengths, strict=True)]}

        return apply


def _reader(model: Any, layer: int, normed: bool) -> Callable[[Tensor], Tensor]:
    """(B, L) ids -> (B, L, D): one block's states, of whichever kind of tower the model has."""
    tower: Any = getattr(model, "text", None)
    if hasattr(tower, "config"):  # open_clip's wrapper of a transformers model, which masks padding

        def theirs(tokens_BL: Tensor) -> Tensor:
            real_BL = (tokens_BL != tower.config.pad_token_id).long()
            seen = tower.transformer(
                input_ids=tokens_BL, attention_mask=real_BL, output_hidden_states=True
            )
            return seen.hidden_states[layer]

        return theirs
    blocks = len((tower or model).transformer.resblocks)
    if not -blocks <= layer < blocks:
        raise RecipeError(f"layer {layer} of {blocks} blocks. Use {-blocks} to {blocks - 1}.")
    how: dict[str, Any] = {"normalize_intermediates": normed, "intermediates_only": True}

    def own(tokens_BL: Tensor) -> Tensor:
        if tower is None:
            said = model.forward_intermediates(text=tokens_BL, text_indices=[layer], **how)
        else:
            said = tower.forward_intermediates(tokens_BL, indices=[layer], output_fmt="NLC", **how)
        return said["text_intermediates"][0]

    return own


def _pad(model: Any, words: Any) -> int:
    """The id that fills a row of open_clip's tokenizer up."""
    theirs = getattr(getattr(words, "tokenizer", None), "pad_token_id", None)
    if theirs is not None:
        return theirs
    return getattr(getattr(model, "text", None), "pad_id", 0)


def _length(tokens_L: Tensor, pad: int) -> int:
    """Tokens up to the last that fills nothing up. CLIP's own fills with what may be a word too,
    but a text's last token is its end."""
    real = torch.nonzero(tokens_L != pad)
    return int(real[-1]) + 1 if len(real) else 1
