"""Weights of others to start from: a folder of diffusers, or one file of Stable Diffusion 1.

    start_from: s3://my-bucket/sd           # unet/, vae/, text_encoder/, as save_pretrained writes
    start_from: ./sd15.safetensors          # CompVis' names; settings in config/ beside it, or none

What an export of ours wrote (`--to diffusers`, `--to single-file`) is such a folder. Every tensor
is accounted for: nothing is missing, nothing is left over. Pickles are never opened.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ..data import storage
from ..errors import CheckpointError, ExportError
from ..pretrain import stored
from . import foreign_shapes as shapes
from . import original

Part = Literal["unet", "text_encoder", "vae", "scheduler", "tokenizer"]
State = Mapping[str, Tensor]
_ALSO: Mapping[str, str] = {"text_encoder": "bert", "vae": "vqvae"}
"""What `LDMTextToImagePipeline` calls them."""
_PREFIXES = {"unet": original.UNET, "text_encoder": original.TEXT, "vae": original.FIRST}
_SHOWN = 3


@dataclass(frozen=True)
class Foreign:
    """A source that was found to be one of the two."""

    url: str
    file: str | None = None
    """The single file; None for a folder of diffusers."""
    configs: str | None = None
    """The folder of the parts' settings; None where a file stands alone."""

    def place(self, part: Part) -> str | None:
        """The folder of a part's settings, and of its weights where there is no single file."""
        if self.configs is None:
            return None
        for name in (part, _ALSO.get(part, part)):
            url = storage.join(self.configs, name)
            if storage.children(url):
                return url
        return None

    def config(self, part: Part) -> dict[str, Any]:
        """A part's settings: those of its config.json, or what a lone file's shapes tell.

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        if self.file and self.configs is None and part in _PREFIXES:
            return shapes.told(part, self._original, self.url)
        home = self.place(part)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        if home is None or not storage.exists(storage.join(home, name)):
            raise CheckpointError(f"{self.url} has no {part}/{name}. Give the whole folder.")
        return stored.settings(storage.join(home, name))

    def has(self, part: Part) -> bool:
        """Whether there is such a part."""
        if self.file and part in _PREFIXES:
            return any(name.startswith(_PREFIXES[part]) for name in self._original)
        return self.place(part) is not None

    def fitted(self, part: Part, wanted: State) -> dict[str, Tensor]:
        """A value for each tensor of `wanted`, a module of diffusers or transformers, by its name.

        Raises:
            CheckpointError: a tensor is missing, is left over or has another shape.
        """
        found = self._from_file(part, wanted) if self.file else self._from_folder(part, wanted)
        return {name: value.float() for name, value in found.items()}

    def require(self) -> None:
        """Says now, without reading weights, what `fitted` would say of a source that is none.

        Raises:
            CheckpointError: the single file is not there, or there is no U-Net.
        """
        if self.file and not storage.exists(self.file):
            raise CheckpointError(f"{self.file} is not there. Name a file that is.")
        if not self.file:
            stored.files(self._home("unet"))

    @functools.cached_property
    def _original(self) -> dict[str, Tensor]:
        assert self.file is not None
        return stored.tensors(self.file)

    def _home(self, part: Part) -> str:
        home = self.place(part)
        if home is None:
            raise CheckpointError(f"{self.url} has no {part}/. Give the whole folder of diffusers.")
        return home

    def _from_folder(self, part: Part, wanted: State) -> dict[str, Tensor]:
        home = self._home(part)
        there = {_bare(part, name): value for name, value in stored.state(home).items()}
        names = {_bare(part, name): name for name in wanted}
        for bare, name in names.items():
            if bare in there and there[bare].shape != wanted[name].shape:
                raise CheckpointError(
                    f"{home}: {bare!r} is {tuple(there[bare].shape)} there and "
                    f"{tuple(wanted[name].shape)} in the recipe's model. Set the model's sizes to "
                    f"those of {part}/config.json, or leave them out of the recipe."
                )
        _account(home, set(names), set(there), part)
        return {name: there[bare] for bare, name in names.items()}

    def _from_file(self, part: Part, wanted: State) -> dict[str, Tensor]:
        naming, prefix = self.naming(part), _PREFIXES[part]
        try:
            found = original.from_original(self._original, wanted, naming, prefix)
            used = {prefix + naming(name) for name in wanted}
        except ExportError as err:
            raise CheckpointError(f"{self.file}: {err}") from err
        there = {name for name in self._original if name.startswith(prefix)}
        _account(str(self.file), used, {name for name in there if not _buffer(name)}, part)
        return found

    def naming(self, part: Part) -> original.Naming:
        """diffusers' names of a part -> the single file's."""
        if part == "unet":
            return original.unet_naming(self.config("unet"))
        if part == "vae":
            return original.autoencoder_naming(len(self.config("vae")["block_out_channels"]))
        return original.text_naming


def open_foreign(url: str) -> Foreign | None:
    """The source at a URL; None where it is neither, such as a run of ours.

    Raises:
        CheckpointError: it is a pickle.
    """
    if url.endswith(stored.PICKLES):
        raise CheckpointError(
            f"{url} is a pickle, which can run any code and is never opened. Name its .safetensors "
            "twin, or convert it where you trust it."
        )
    if url.endswith(".safetensors"):
        folder, _, name = url.rpartition("/")
        beside = storage.join(folder, "config") if folder else "config"
        ours = name == "model.safetensors" and _is_pipeline(beside)
        return Foreign(url, url, beside if ours else None)
    if _is_pipeline(url):
        return Foreign(url, None, url)
    inside = storage.join(url, "config")
    if _is_pipeline(inside):
        return Foreign(url, storage.join(url, "model.safetensors"), inside)
    return None


def _is_pipeline(url: str) -> bool:
    return storage.exists(storage.join(url, "unet", "config.json"))


def _bare(part: Part, name: str) -> str:
    """Versions of transformers differ in whether CLIP's names begin with `text_model.`."""
    return name.removeprefix("text_model.") if part == "text_encoder" else name


def _buffer(name: str) -> bool:
    return name.endswith("position_ids")  # older versions of transformers kept them


def _account(where: str, wanted: set[str], there: set[str], part: Part) -> None:
    """Raises CheckpointError where a tensor is missing or left over."""
    there = {name for name in there if not _buffer(name)}
    for names, said in ((wanted - there, "lacks"), (there - wanted, "has besides")):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN])
            raise CheckpointError(
                f"{where} {said} {len(names)} tensors of the recipe's {part}: {shown}. It is of "
                "another model or of other sizes: leave the sizes out of the recipe, and they are "
                "read from the settings there."
            )
