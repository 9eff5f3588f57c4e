"""What an encoder is: a record that names frozen weights and opens them, to fill a cache.

B rows, C channels, H x W pixels, L tokens, D width, N regions. Weights are data and nothing else:
of a folder only safetensors, settings and vocabularies are ever looked at.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from .. import config
from ..config import Kinds, Part, override, parse, plain, unknown
from ..data import storage
from ..data.cache import Dtype, Side, Spec
from ..errors import RecipeError

_DATA = (".safetensors", ".json", ".txt", ".model")
"""Files of a folder of weights that a library may see; pickles and code it may not."""

Rows = Mapping[str, Tensor | Sequence[Tensor]]
Apply = Callable[[Tensor, Sequence[str]], Rows]
"""(images (B, 3, H, W) uint8, texts) -> rows by name, on the model's device."""


class Encoder(Part):
    """A record of an encoder's settings and of where its weights lie."""

    reads: ClassVar[tuple[Side, ...]]
    """What of a sample it sees."""
    whole: ClassVar[bool] = False
    """Whether it draws a picture beside the picture, which a loader then cuts like it."""

    @property
    def places(self) -> dict[str, str]:
        """URLs of its folders of weights by the name of the setting; what lies there counts in the
        digest, where it lies does not."""
        raise NotImplementedError(f"encoder {self.kind!r} has no places")

    def build(self, folders: Mapping[str, Path], device: str) -> Apply:
        """The frozen model, in 32 bits; `folders` are local copies of `places`.

        Raises:
            RecipeError: the weights are not of such a model.
        """
        raise NotImplementedError(f"encoder {self.kind!r} has no build")

    def digest(self) -> str:
        """16 hex digits of its settings and of the files in its folders.

        Raises:
            RecipeError: there are no safetensors weights.
            StorageError: the files cannot be read.
        """
        with self._folders() as folders:
            return self._digest(folders)

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
        with self._folders() as folders:
            try:
                apply = self.build(folders, device)
            except RecipeError:
                raise
            except Exception as err:  # each library has its own errors for wrong files
                raise RecipeError(
                    f"{', '.join(self.places.values())} does not hold a model of kind "
                    f"{self.kind!r}: {type(err).__name__}: {' '.join(str(err).split())[:300]}"
                ) from err
            return Opened(self.kind, self._digest(folders), apply, device)

    @contextlib.contextmanager
    def _folders(self) -> Iterator[dict[str, Path]]:
        """Local folders of its `places`."""
        with contextlib.ExitStack() as stack:
            places = self.places
            folders = {name: stack.enter_context(_local(url)) for name, url in places.items()}
            if "weights" in folders:
                _require_safetensors(folders["weights"], places["weights"])
            yield folders

    def _digest(self, folders: Mapping[str, Path]) -> str:
        settings = {name: value for name, value in plain(self).items() if name not in folders}
        files = {name: _files_digest(folder) for name, folder in folders.items()}
        return config.digest({"kind": self.kind, "settings": settings, "files": files})


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


def whole(url: str | None) -> str | None:
    """A place of weights as a whole URL, since a worker may run in another folder."""
    return storage.absolute(url) if url else None


def require_loaded(missing: Iterable[str], but: str = "") -> None:
    """Refuses weights that leave part of a model as it was drawn at random.

    Raises:
        RecipeError: a tensor is missing, other than of the part called `but`.
    """
    lost = sorted(name for name in missing if not (but and name.startswith(but)))
    if lost:
        raise RecipeError(
            f"the weights lack {len(lost)} tensors that the model needs, such as {lost[0]!r}. "
            "Give the whole model's folder."
        )


def _numpy(row: Tensor) -> np.ndarray:
    row = row.float() if row.is_floating_point() else row
    return row.cpu().numpy()


@contextlib.contextmanager
def _local(url: str) -> Iterator[Path]:
    """A local folder with the files at a URL (a folder, or one .safetensors file) that are data."""
    folder, _, file = url.rpartition("/") if url.endswith(".safetensors") else (url, "", "")
    names = [file] if file else [n for n in storage.children(url) if n.endswith(_DATA)]
    with tempfile.TemporaryDirectory(prefix="diptych-weights-") as home:
        for name in names:
            place = Path(home) / name
            if storage.is_local(url):
                source = storage.local_path(storage.join(folder, name))
                if source.is_file():
                    place.symlink_to(source)
            else:
                with storage.open_read(storage.join(folder, name)) as read, open(place, "wb") as to:
                    shutil.copyfileobj(read, to, 8 << 20)
        yield Path(home)


def _require_safetensors(folder: Path, url: str) -> None:
    if not any(path.suffix == ".safetensors" for path in folder.iterdir()):
        raise RecipeError(
            f"{url} holds no .safetensors weights. Name a local folder or s3://… that does; "
            "pickled weights (.bin, .pt, .ckpt) are never read: convert them first."
        )


def _files_digest(folder: Path) -> str:
    told = hashlib.sha256()
    files = sorted(folder.iterdir())
    for path in files:
        with open(path, "rb") as file:
            name = path.name if len(files) > 1 else ""  # a single file may be called anything
            told.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return told.hexdigest()
