"""Features of the Inception network that FID is defined with (Heusel et al. 2017).

B rows, D = 2048 features.
"""

import hashlib
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator
from safetensors.torch import load_file
from torch import Tensor

from ...data.cache import Side
from ...errors import RecipeError
from ..encoder import Apply, Encoder, Rows
from ..frozen import whole
from ..slices import raw

_ORIGIN = "6726825d"
"""How the SHA-256 of `weights-inception-2015-12-05-6726825d.pth` begins; its name says so."""


class Inception(Encoder):
    """`features` (2048,): FID and KID are distances in them, if the weights are the standard ones.

    The published file is a pickle, which is not read. Convert it once, elsewhere:

        safetensors.torch.save_file(torch.load("weights-inception-2015-12-05-6726825d.pth",
                                               weights_only=True), "inception.safetensors")
    """

    kind: ClassVar[str] = "inception"
    reads: ClassVar[tuple[Side, ...]] = ("image",)
    weights: str
    """`inception.safetensors`, made as above."""
    origin: str | None = None
    """The published .pth, a local file: its hash is checked, and that the weights are its bytes."""

    _whole = field_validator("weights")(whole)

    @property
    def places(self) -> dict[str, str]:
        return {"weights": self.weights}

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        (file,) = folders["weights"].glob("*.safetensors")
        if self.origin:
            require_standard(file, Path(self.origin))
        model = network()
        model.load_state_dict(load_file(file))
        model = model.eval().requires_grad_(False).to(device)

        def apply(images_BCHW: Tensor, texts: Sequence[str]) -> Rows:
            return {"features": model(images_BCHW)[0]}

        return apply


def network() -> Any:
    """torch-fidelity's network without weights; takes uint8 images of any size.

    Raises:
        RecipeError: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as theirs
    except ImportError as err:
        raise RecipeError(
            "inception features need torch-fidelity: pip install torch-fidelity"
        ) from err

    class Bare(theirs.FeatureExtractorInceptionV3):
        """Its constructor would read a pickle: the state that it asks for is the one it has."""

        def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None

    loader = theirs.load_state_dict_from_url
    theirs.load_state_dict_from_url = lambda *args, **kwargs: {}
    try:
        return Bare("inception-v3-compat", ["2048"])
    finally:
        theirs.load_state_dict_from_url = loader


def require_standard(weights: Path, origin: Path) -> None:
    """Holds converted weights against the published file, whose bytes are compared, not loaded.

    Raises:
        RecipeError: `origin` is another file, or a tensor of `weights` is not in it.
    """
    with open(origin, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(_ORIGIN):
        raise RecipeError(
            f"{origin} is not the standard Inception: its SHA-256 begins with {found[:8]}, that of "
            f"weights-inception-2015-12-05-{_ORIGIN}.pth with {_ORIGIN}."
        )
    if lost := list(missing(load_file(weights), origin)):
        raise RecipeError(f"{lost[0]!r} of {weights} is not in {origin}. Convert that file again.")


def missing(state: Mapping[str, Tensor], origin: Path) -> Iterable[str]:
    """Names of the tensors whose bytes stand nowhere in a file."""
    with open(origin, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole_:
        for name, value in state.items():
            if whole_.find(bytes(raw(value.contiguous()))) < 0:
                yield name
