"""Frozen weights: a record that says where they lie, and what they are by a digest.

Weights are data and nothing else: of a folder only safetensors, settings and vocabularies are ever
looked at. A frozen part is no submodule of a task, so that no engine and no checkpoint has it.
"""

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .. import config
from ..config import Part, plain
from ..data import storage
from ..errors import RecipeError

STAGE = "first_stage"
"""Where in its folder a run that trained a first stage leaves it, as diffusers has it."""
_DATA = (".safetensors", ".json", ".txt", ".model")
"""Files of a folder of weights that a library may see; pickles and code it may not."""
_VARIANT = re.compile(
    r"(diffusion_pytorch_model|model)\.(\w+\.safetensors|safetensors\.(index\.\w+|\w+\.index)\.json)"
)
"""As `save_pretrained(..., variant="fp16")` names weights, or the index of their shards."""


class Frozen(Part):
    """A record of a part's settings and of where its weights lie."""

    @property
    def places(self) -> dict[str, str]:
        """URLs of its folders of weights by the name of the setting; what lies there counts in the
        digest, where it lies does not."""
        raise NotImplementedError(f"{self.kind!r} has no places")

    def digest(self) -> str:
        """16 hex digits of its settings and of the files in its folders.

        Raises:
            RecipeError: there are no safetensors weights.
            StorageError: the files cannot be read.
        """
        with self.folders() as folders:
            return self.digest_of(folders)

    @contextlib.contextmanager
    def folders(self) -> Iterator[dict[str, Path]]:
        """Local folders of its `places`.

        Raises:
            RecipeError: there are no safetensors weights.
            StorageError: the files cannot be read.
        """
        with contextlib.ExitStack() as stack:
            places = self.places
            folders = {name: stack.enter_context(_local(url)) for name, url in places.items()}
            for name in folders:
                if name != "tokenizer":
                    _require_safetensors(folders[name], places[name])
            yield folders

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever a library raises on wrong files, as one sentence.

        Raises:
            RecipeError: the weights are not of such a model.
        """
        try:
            yield
        except RecipeError:
            raise
        except Exception as err:  # each library has its own errors for wrong files
            raise RecipeError(
                f"{', '.join(self.places.values())} does not hold a model of kind "
                f"{self.kind!r}: {type(err).__name__}: {' '.join(str(err).split())[:300]}"
            ) from err

    def digest_of(self, folders: Mapping[str, Path]) -> str:
        """The digest, with the files at hand."""
        settings = {name: value for name, value in plain(self).items() if name not in folders}
        files = {name: _files_digest(folder) for name, folder in folders.items()}
        return config.digest({"kind": self.kind, "settings": settings, "files": files})


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


@contextlib.contextmanager
def _local(url: str) -> Iterator[Path]:
    """A local folder with the files at a URL (a folder, or one .safetensors file) that are data.

    Of a run of ours, its `first_stage/`.
    """
    if not url.endswith(".safetensors") and storage.exists(storage.join(url, "recipe.yaml")):
        url = storage.join(url, STAGE)
        if not storage.children(url):
            raise RecipeError(
                f"{url} is not there: the run trained no first stage, or is not finished. Export "
                "what it has: diptych export RUN --to autoencoder --out FOLDER."
            )
    folder, _, file = url.rpartition("/") if url.endswith(".safetensors") else (url, "", "")
    names = [file] if file else [n for n in storage.children(url) if n.endswith(_DATA)]
    called = {} if file else _called(names)
    with tempfile.TemporaryDirectory(prefix="diptych-weights-") as home:
        for name in names:
            place = Path(home) / called.get(name, name)
            if storage.is_local(url):
                source = storage.local_path(storage.join(folder, name))
                if source.is_file():
                    place.symlink_to(source)
            else:
                with storage.open_read(storage.join(folder, name)) as read, open(place, "wb") as to:
                    shutil.copyfileobj(read, to, 8 << 20)
        yield Path(home)


def _called(names: Sequence[str]) -> dict[str, str]:
    """What libraries look for in place of a variant: `model.safetensors` for a lone
    `model.fp16.safetensors`, and so with an index of shards."""
    found: dict[str, list[str]] = {}
    for name in names:
        if match := _VARIANT.fullmatch(name):
            found.setdefault(f"{match[1]}.safetensors", []).append(name)
    return {
        each[0]: plain + (".index.json" if each[0].endswith(".json") else "")
        for plain, each in found.items()
        if len(each) == 1 and plain not in names and f"{plain}.index.json" not in names
    }


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
