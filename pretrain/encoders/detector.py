"""Regions that a detector of torchvision finds, with their boxes (bottom-up attention, Anderson et
al. 2018; Faster R-CNN, Ren et al. 2015). B rows, D width.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from safetensors.torch import load_file
from torch import Tensor

from ...data.cache import Side
from ...errors import RecipeError
from ..encoder import Apply, Encoder, Rows
from ..frozen import require_loaded, whole

_SCORES = "roi_heads.box_predictor.cls_score.weight"
_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")
"""Whose published weights torchvision runs without an epsilon in batch norms."""


class Detector(Encoder):
    """`regions` (N, D), the box head's features (fc6/fc7), and `boxes` (N, 4), shares of the sides:
    the most certain first; the whole picture where nothing is found."""

    kind: ClassVar[str] = "detector"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    boxed: ClassVar[bool] = True
    weights: str | None = None
    """A .safetensors file of the state dict, or its folder; without, as `seed` draws them."""
    network: str = "fasterrcnn_resnet50_fpn_v2"
    """Of torchvision.models.detection, with heads of regions: fasterrcnn_*, maskrcnn_*, ..."""
    count: int = Field(default=36, ge=1)
    """Most regions of a picture."""
    threshold: float = Field(default=0.05, ge=0, lt=1)
    """Least score of a region."""
    size: int = Field(default=800, ge=32)
    """Pixels of the shorter side that the detector sees."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**64)

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights} if self.weights else {}

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        stored = None
        if self.weights:
            (file,) = folders["weights"].glob("*.safetensors")
            stored = load_file(file)
        model = self._network(91 if stored is None else len(stored[_SCORES]))
        if stored is not None:
            lost = model.load_state_dict(stored, strict=False).missing_keys
            require_loaded(name for name in lost if not name.endswith("num_batches_tracked"))
        model = model.float().to(device).eval()

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            return _found(model, images_BCHW.float() / 255)

        return apply

    def _network(self, classes: int) -> Any:
        import torchvision  # imports for a second

        known: list[str] = torchvision.models.list_models(torchvision.models.detection)
        if self.network not in known:
            raise RecipeError(f"torchvision has no detector {self.network!r}. It has: {known}.")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model: Any = torchvision.models.get_model(
                self.network, weights=None, weights_backbone=None, num_classes=classes
            )
        if not hasattr(model, "roi_heads"):
            raise RecipeError(f"{self.network} has no features of regions. Use fasterrcnn_...")
        model.transform.min_size, model.transform.max_size = (self.size,), 4 * self.size
        heads = model.roi_heads
        heads.detections_per_img, heads.score_thresh = self.count, self.threshold
        heads.mask_roi_pool = heads.keypoint_roi_pool = None  # nobody asks for these
        for module in model.modules() if self.network in _NO_EPSILON else ():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
        return model


def _found(model: Any, images_BCHW: Tensor) -> Rows:
    seen, _ = model.transform(list(images_BCHW))
    maps = model.backbone(seen.tensors)
    maps = OrderedDict([("0", maps)]) if isinstance(maps, Tensor) else maps
    proposals, _ = model.rpn(seen, maps)
    heads, sizes = model.roi_heads, seen.image_sizes
    told, _ = heads(maps, proposals, sizes)
    corners = [
        one["boxes"] if len(one["boxes"]) else one["boxes"].new_tensor([[0, 0, width, height]])
        for one, (height, width) in zip(told, sizes, strict=True)
    ]
    features_RD = heads.box_head(heads.box_roi_pool(maps, corners, sizes))
    shares = [
        each / each.new_tensor([width, height] * 2)
        for each, (height, width) in zip(corners, sizes, strict=True)
    ]
    return {"regions": features_RD.split([len(each) for each in corners]), "boxes": shares}
