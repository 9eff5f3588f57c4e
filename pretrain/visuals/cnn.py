"""The feature map of a convolutional network of timm, or a random part of it (Pixel-BERT).

B rows, N cells, C channels of the map, D width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ...data.draws import uniform
from ...errors import RecipeError
from .. import stored
from ..frozen import whole
from ..objective import View
from ..visual import Visual


class Cnn(Visual):
    """Each cell of the last feature map is a region, with its learned place."""

    kind: ClassVar[str] = "cnn"
    network: str = "resnet50_gn"
    """A network of timm with a feature map and without batch statistics, which would make a row's
    numbers depend on the rows beside it."""
    stride: int = Field(default=32, ge=1)
    """Pixels a cell is wide: which of the network's maps is taken."""
    weights: str | None = None
    """What the network begins with: timm's weights of it, a .safetensors file or its folder. Then
    it sees pixels by timm's own mean and deviation. By default it is drawn at random."""
    sample: int | None = Field(default=None, ge=1)
    """Cells that a training step sees, drawn at random (100 in Pixel-BERT, Huang et al. 2020); in
    evaluation all. None: always all."""

    _whole = field_validator("weights")(whole)

    def check(self, image_size: int) -> None:
        if image_size % self.stride:
            raise ValueError(f"image_size {image_size} is not a multiple of stride {self.stride}")
        cells = self.regions(image_size)
        if self.sample and self.sample > cells:
            raise ValueError(f"sample {self.sample} is more than the {cells} cells of the map")

    def regions(self, image_size: int) -> int:
        return (image_size // self.stride) ** 2

    def region_values(self, image_size: int) -> int:
        return 0 if self.sample else 3 * self.stride**2

    def build(self, width: int, image_size: int, epsilon: float) -> "MapTokens":
        return MapTokens(width, self, image_size, epsilon)

    def begin(self, module: "MapTokens", image_size: int) -> None:
        if self.weights:
            network, _ = _network(self, image_size, stored.state(self.weights))
            module.network.load_state_dict(network.state_dict())


class MapTokens(nn.Module):
    """view -> (B, N, D), or fewer regions in training when some are sampled."""

    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, width: int, spec: Cnn, image_size: int, epsilon: float) -> None:
        super().__init__()
        self.sample = spec.sample
        self.network, channels = _network(spec, image_size)
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.places = nn.Parameter(torch.zeros(spec.regions(image_size), width))
        self.hole = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.places, std=0.02)
        nn.init.normal_(self.hole, std=0.02)
        config = _config(spec.network) if spec.weights else None
        # What turns pixels of -1 to 1, of mean and deviation 1/2, into those that timm means.
        shift = _channels(config.mean) * 2 - 1 if config else None
        scale = 0.5 / _channels(config.std) if config else None
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, view: View) -> Tensor:
        pixels_BCHW = view.image_BCHW
        if self.shift is not None and self.scale is not None:
            pixels_BCHW = (pixels_BCHW - self.shift) * self.scale
        cells_BNC = self._cells(self.network(pixels_BCHW)[-1])
        cells_BND = self.norm(self.project(cells_BNC))
        cells_BND = cells_BND + self.places + view.hidden_BN[..., None] * self.hole
        if not (self.sample and self.training):
            return cells_BND
        draws_BN = uniform(view.batch.draws_B, "cnn.sample", cells_BND.shape[1])
        kept_BK1 = draws_BN.argsort(1)[:, : self.sample].sort(1).values[..., None]
        return cells_BND.gather(1, kept_BK1.expand(-1, -1, cells_BND.shape[2]))

    def _cells(self, map_BCHW: Tensor) -> Tensor:
        """(B, N, C) of a map, also of one with its channels last, as Swin's."""
        if map_BCHW.shape[1] != self.project.in_features:
            return map_BCHW.flatten(1, 2)
        return map_BCHW.flatten(2).transpose(1, 2)


def _config(network: str) -> Any:
    """What timm knows of a network: mean and deviation of its pixels, its own size; or None."""
    import timm  # imports for seconds

    return timm.get_pretrained_cfg(network)


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _network(
    spec: Cnn, image_size: int, weights: dict[str, Tensor] | None = None
) -> tuple[Any, int]:
    """timm's network up to the map of that stride, and its channels.

    Raises:
        RecipeError: timm has no such network, or it has no such map, or batch statistics; or the
            weights are another's.
    """
    import timm  # imports for seconds

    try:
        known = _config(spec.network)
        fixed: Any = {"img_size": image_size} if known and known.fixed_input_size else {}
        info: Any = timm.create_model(spec.network, features_only=True, **fixed).feature_info
    except (RuntimeError, AttributeError, ValueError) as err:
        raise RecipeError(
            f"visual 'cnn': timm gives no feature maps of {spec.network!r}: {err}. "
            "`timm.list_models('*_gn')` lists some that are known to do."
        ) from err
    strides: list[int] = info.reduction()
    if spec.stride not in strides:
        raise RecipeError(
            f"visual 'cnn': {spec.network} has maps of strides {strides}, not {spec.stride}."
        )
    last = len(strides) - 1 - strides[::-1].index(spec.stride)
    if weights is not None:
        _require_weights(spec, fixed, weights)
        fixed |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights}}
    try:
        network: Any = timm.create_model(
            spec.network, features_only=True, out_indices=(last,), **fixed
        )
    except RuntimeError as err:  # tensors of other shapes
        raise RecipeError(f"visual 'cnn': {spec.weights}: {' '.join(str(err).split())}") from err
    if any(name.endswith("running_mean") for name, _ in network.named_buffers()):
        raise RecipeError(
            f"visual 'cnn': {spec.network} has batch norms, whose statistics depend on how a batch "
            "is sliced. Use one with group or layer norms, such as resnet50_gn."
        )
    return network, network.feature_info.channels()[-1]


def _require_weights(spec: Cnn, fixed: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """timm itself passes over what is missing.

    Raises:
        RecipeError: the weights lack some that the network has.
    """
    import timm  # imports for seconds

    whole: Any = timm.create_model(spec.network, num_classes=0, **fixed)
    lost = [
        name
        for name, value in whole.named_parameters()
        if name not in weights or value.ndim != weights[name].ndim
    ]
    if lost:
        raise RecipeError(
            f"visual 'cnn': {spec.weights} does not hold timm's weights of {spec.network}: "
            f"{len(lost)} are missing, such as {lost[0]!r}."
        )
