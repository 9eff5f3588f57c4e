"""What an encoder is: a record that names frozen weights and opens them, to fill a cache.

B rows, C channels, H x W pixels, L tokens, D width, N regions.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from ..config import Kinds, kinds, override, parse, pick, unknown
from ..data.cache import Dtype, Side, Spec
from ..errors import RecipeError
from .frozen import Frozen

Rows = Mapping[str, Tensor | Sequence[Tensor]]
Apply = Callable[[Tensor, Sequence[str]], Rows]
"""(images (B, 3, H, W) uint8, texts) -> rows by name, on the model's device."""


class Encoder(Frozen):
    """A record of an encoder's settings and of where its weights lie."""

    reads: ClassVar[tuple[Side, ...]]
    """What of a sample it sees."""
    boxed: ClassVar[bool] = False
    """Whether its `regions` come with their `boxes`, shares of the picture's sides; without, they
    are the cells of a square, row by row."""
    whole: ClassVar[bool] = False
    """Whether it draws a picture beside the picture, which a loader then cuts like it."""

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        """The frozen model, in 32 bits; `folders` are local copies of `places`.

        Raises:
            RecipeError: the weights are not of such a model.
        """
        raise NotImplementedError(f"encoder {self.kind!r} has no build")

    def spec(
        self,
        *,
        sizes: Sequence[tuple[int, int]] = ((64, 64),),
        exact: bool = False,
        text: str = "txt",
        dtype: Dtype = "float16",
    ) -> Spec:
        """What a cache of its outputs holds; settings of a side that it does not see are None.

        Args:
            sizes: (width, height) of frames, in pixels.
            exact: decode JPEGs in full.
            text: `txt`, or a field of the JSON record.
            dtype: of the arrays.
        """
        sees = "image" in self.reads
        return Spec(
            encoder=self.kind,
            encoder_digest=self.digest(),
            reads=self.reads,
            dtype=dtype,
            sizes=tuple(sizes) if sees else None,
            exact=exact if sees else None,
            text=text if "text" in self.reads else None,
            whole=self.whole or None,
        )

    def open(self, device: str = "cpu") -> "Opened":
        """The encoder with its weights in memory.

        Raises:
            RecipeError: the weights are not of such a model, or not safetensors.
            StorageError: they cannot be read.
        """
        with self.folders() as folders:
            with self.explained():
                apply = self.build(folders, device)
            return Opened(self.kind, self.digest_of(folders), apply, device)


class Opened:
    """An encoder with its weights in memory: what `data.precompute` wants."""

    def __init__(self, name: str, digest: str, apply: Apply, device: str) -> None:
        self.name, self.digest, self.apply, self.device = name, digest, apply, device

    def encode(
        self, images_BCHW: np.ndarray | None, texts: Sequence[str] | None
    ) -> dict[str, Sequence[np.ndarray]]:
        """Arrays of B rows by name.

        Raises:
            RecipeError: the model does not take such images or texts.
        """
        pixels = np.empty((0, 3, 0, 0), np.uint8) if images_BCHW is None else images_BCHW
        with torch.inference_mode():
            try:
                rows = self.apply(torch.from_numpy(pixels).to(self.device), texts or [])
            except (RuntimeError, AssertionError, ValueError, IndexError) as err:
                raise RecipeError(
                    f"the encoder {self.name!r} cannot encode {len(pixels)} images of "
                    f"{pixels.shape[2]} x {pixels.shape[3]} and {len(texts or [])} texts: "
                    f"{' '.join(str(err).split())[:300]} Change the size or the batch."
                ) from err
            return {name: [_numpy(row) for row in found] for name, found in rows.items()}


def find_encoder(text: str, settings: list[str], kinds: Kinds) -> Encoder:
    """An encoder from `KIND=WEIGHTS` (or `KIND` alone) and `name=value` settings.

    Raises:
        RecipeError: no such kind, or a setting that it does not have.
    """
    kind, _, weights = text.partition("=")
    if kind not in kinds:
        raise unknown(kind, list(kinds), "encoder")
    values = override({"weights": weights} if weights else {}, settings)
    return cast(Encoder, parse(kinds[kind], values, source=f"encoder {kind!r}"))


def picked(value: Any) -> Any:
    """An encoder from a recipe's plain value, for fields that take any of them."""
    from . import encoders  # which import this file

    return pick(value, kinds(encoders), "encoder")


def _numpy(row: Tensor) -> np.ndarray:
    row = row.float() if row.is_floating_point() else row
    return row.cpu().numpy()
