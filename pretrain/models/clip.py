"""Two towers that never meet: CLIP (Radford et al. 2021), of open_clip's own modules.

Trained by the objective `contrastive`. The parameters have open_clip's names, so that its
checkpoints and ours are the same. B rows, L tokens, D width.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ..model import Model
from ..objective import Seen, Sizes, Towers, View, Words


class Clip(Model):
    """A ViT and a left-to-right text transformer, each projected to vectors of `width`."""

    kind: ClassVar[str] = "clip"
    width: int = Field(default=128, ge=8)
    """Of the text tower and of the space that both share."""
    heads: int = Field(default=4, ge=1)
    depth: int = Field(default=3, ge=1)
    """Layers of the text tower."""
    visual_width: int = Field(default=128, ge=8)
    visual_heads: int = Field(default=4, ge=1)
    visual_depth: int = Field(default=3, ge=1)
    patch: int = Field(default=16, ge=1)
    """Side of a patch, in pixels."""

    @model_validator(mode="after")
    def _fits(self) -> "Clip":
        for width, heads in ((self.width, self.heads), (self.visual_width, self.visual_heads)):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of heads {heads}")
        if self.image_size % self.patch:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch {self.patch}"
            )
        return self

    @property
    def regions(self) -> int:
        return 0

    def build(self, words: Words) -> Any:
        return _towers(self.settings(words.size, words.empty[-1]))

    def sizes(self, words: Words) -> Sizes:
        return Sizes(width=self.width, vocabulary=words.size, shared=self.width)

    def settings(self, vocabulary: int, end: int) -> dict[str, Any]:
        """The `model_cfg` of open_clip; `end` is the token whose state stands for the text."""
        return {
            "embed_dim": self.width,
            "vision_cfg": {
                "image_size": self.image_size,
                "layers": self.visual_depth,
                "width": self.visual_width,
                "head_width": self.visual_width // self.visual_heads,
                "patch_size": self.patch,
            },
            "text_cfg": {
                "context_length": self.tokens,
                "vocab_size": vocabulary,
                "width": self.width,
                "heads": self.heads,
                "layers": self.depth,
                "pool_type": "eos",
                "eos_id": end,
            },
        }


def _towers(settings: dict[str, Any]) -> Any:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # imports for seconds

    class ClipTowers(CLIP):
        """view -> Seen. What stands for the pair is the product of both vectors."""

        def __init__(self) -> None:
            vision, text = (
                CLIPVisionCfg(**settings["vision_cfg"]),
                CLIPTextCfg(**settings["text_cfg"]),
            )
            super().__init__(settings["embed_dim"], vision, text)
            del self.logit_scale  # the objective has its own

        @property
        def words(self) -> Any:
            """The word embeddings."""
            return self.token_embedding

        def forward(self, view: View) -> Seen:  # pyright: ignore[reportIncompatibleMethodOverride]
            here: Any = self  # open_clip says nothing of the types of its parts
            tokens_BL, length = view.tokens_BL, view.tokens_BL.shape[1]
            if length < here.context_length:
                tokens_BL = F.pad(tokens_BL, (0, here.context_length - length))
            states_BLD = here.token_embedding(tokens_BL) + here.positional_embedding
            states_BLD = here.ln_final(here.transformer(states_BLD, attn_mask=here.attn_mask))
            end_B = tokens_BL.eq(here.text_eos_id).int().argmax(1)
            row_B = torch.arange(end_B.shape[0], device=end_B.device)  # ONNX fixes a `len`
            text_BD = F.normalize(states_BLD[row_B, end_B] @ here.text_projection, dim=1)
            image_BD = F.normalize(here.visual(view.image_BCHW), dim=1)

            def pair(other_B: Tensor) -> Tensor:
                return text_BD[other_B] * image_BD

            return Seen(
                view=view,
                tokens_BLD=states_BLD[:, :length],
                regions_BND=states_BLD[:, :0],
                pooled_BD=text_BD * image_BD,
                word_weights_VD=here.token_embedding.weight,
                towers=Towers(text_BE=text_BD, image_BE=image_BD, pair=pair),
            )

    return ClipTowers()
