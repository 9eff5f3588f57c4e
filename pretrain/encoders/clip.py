"""Both towers of an open_clip model, from a folder that open_clip itself saved.

B rows, D width of the shared space.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ...data.cache import Side
from ..encoder import Apply, Rows
from ..open_clip_folder import OfOpenClip, opened, pixels


class Clip(OfOpenClip):
    """`features` (D,) of the image and `text` (D,), unit vectors: their product is the similarity.

    Images are resized to the model's square with antialiasing, not cropped.
    """

    kind: ClassVar[str] = "clip"
    reads: ClassVar[tuple[Side, ...]] = ("image", "text")

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        model, words = opened(folders["weights"], device)
        seen = pixels(model, device)

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            found: dict[str, Tensor] = {}
            if images_BCHW.shape[2]:
                found["features"] = model.encode_image(seen(images_BCHW), normalize=True)
            if texts:
                tokens_BL = words(list(texts)).to(device)
                found["text"] = model.encode_text(tokens_BL, normalize=True)
            return found

        return apply
