"""Frozen weights: a record that says where they lie, and what they are by a digest.

Weights are data and nothing else: of a folder only safetensors, settings and vocabularies are ever
looked at. A frozen part is no submodule of a task, so that no engine and no checkpoint has it.
"""

import contextlib
import hashlib
import json
import math
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
                    there = (path.name for path in folders[name].iterdir())
                    _require_safetensors(there, places[name])
            yield folders

    def elements(self) -> int:
        """Numbers in its weights, by the headers of its files alone: nothing else is read.

        Raises:
            RecipeError: there are no safetensors weights.
            StorageError: the files cannot be read.
        """
        return sum(_elements(url) for name, url in self.places.items() if name != "tokenizer")

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
    """A local folder with the `_files` of a URL."""
    with tempfile.TemporaryDirectory(prefix="diptych-weights-") as home:
        for name, file in _files(url).items():
            place = Path(home) / name
            if storage.is_local(file):
                source = storage.local_path(file)
                if source.is_file():
                    place.symlink_to(source)
            else:
                with storage.open_read(file) as read, open(place, "wb") as to:
                    shutil.copyfileobj(read, to, 8 << 20)
        yield Path(home)


def _files(url: str) -> dict[str, str]:
    """The URLs of the files at a URL (a folder, or one .safetensors file) that are data, by the
    names that libraries look for.

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
    return {called.get(name, name): storage.join(folder, name) for name in names}


def _elements(url: str) -> int:
    """Numbers in the tensors of its files; one that several files have, as variants do, once."""
    found = dict[str, int]()
    files = {name: file for name, file in _files(url).items() if name.endswith(".safetensors")}
    _require_safetensors(files, url)
    for file in files.values():
        try:
            end = 8 + int.from_bytes(storage.read(file, 0, 8), "little")
            if end > storage.stat(file)[0]:
                raise ValueError("its header ends behind it")
            head = json.loads(storage.read(file, 8, end))
            head.pop("__metadata__", None)
            tensors = {name: math.prod(each["shape"]) for name, each in head.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise RecipeError(f"{file} is damaged, or no safetensors file. Get it again.") from err
        found |= tensors
    return sum(found.values())


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


def _require_safetensors(names: Iterable[str], url: str) -> None:
    if not any(name.endswith(".safetensors") for name in names):
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
