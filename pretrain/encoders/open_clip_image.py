"""Patch states of the image tower of an open_clip model, from a folder that open_clip itself saved.

B rows, N patches, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ...data.cache import Side
from ..encoder import Apply, Rows
from ..open_clip_folder import OfOpenClip, opened, pixels


class OpenClipImage(OfOpenClip):
    """`regions` (N, D): the last block's states of the patches, or cells of the last map.

    Images are resized to the model's square with antialiasing, not cropped.
    """

    kind: ClassVar[str] = "open_clip_image"
    reads: ClassVar[tuple[Side, ...]] = ("image",)

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        model, _ = opened(folders["weights"], device)
        seen = pixels(model, device)

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            said = model.visual.forward_intermediates(
                seen(images_BCHW), indices=1, normalize_intermediates=True, intermediates_only=True
            )
            map_BDhw: Tensor = said["image_intermediates"][-1]
            return {"regions": map_BDhw.flatten(2).transpose(1, 2)}

        return apply
