"""No first stage: the denoiser works on pixels."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ..first_stage import FirstStage, Moments, Stage


class Pixels(FirstStage):
    """Latents are the images themselves, in [-1, 1]."""

    kind: ClassVar[str] = "pixels"

    @property
    def places(self) -> dict[str, str]:
        return {}

    @property
    def channels(self) -> int:
        return 3

    @property
    def factor(self) -> int:
        return 1

    def build(self, folders: Mapping[str, Path]) -> Stage:
        return Stage((), Moments, lambda image: image, self.factor_or(None))
