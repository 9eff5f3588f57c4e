"""The sides of a model that an adapter stands on, as other tools name them.

A denoiser on diffusers' U-Net has the side `unet` and, with CLIP, `text_encoder`; of a text encoder
of our own, the side is `text`, and of every other model there is one, `model`.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..pretrain.adapter import Adapter
from ..pretrain.run import Run
from ..pretrain.slices import raw
from ..pretrain.task import Task
from .tuner import Tuner, layers, names

_STATE = "text_model."
"""What older versions of transformers have before the names of CLIP's layers."""


@dataclass(frozen=True)
class Side:
    """One module with the layers of one of peft's adapters inside."""

    name: str
    path: str
    """Of the module in the task's model; empty for the model itself."""
    module: nn.Module
    adapter: Tuner

    def layers(self) -> dict[str, Any]:
        """peft's layers, by the names that their modules have in this one."""
        return layers(self.module)

    def tensors(self) -> dict[str, Tensor]:
        """What the adapter has learned, fp32, as peft stores it: without the adapter's name."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers().items():
            called = names(layer)[0]
            for key, value in layer.named_parameters():
                if called not in key.split("."):
                    continue
                key = ".".join(part for part in key.split(".") if part != called)
                if "lora_magnitude_vector" in key:
                    key = key.removesuffix(".weight")
                found[f"{name}.{key}"] = value.detach().float().cpu().contiguous()
        return found

    def ranks(self) -> dict[str, int]:
        """Rank of each adapted module."""
        return {name: int(layer.r[names(layer)[0]]) for name, layer in self.layers().items()}

    def alphas(self) -> dict[str, float]:
        """Alpha of each adapted module."""
        found: dict[str, float] = {}
        for name, layer in self.layers().items():
            table = getattr(layer, "lora_alpha", None) or layer.alpha
            found[name] = float(table[names(layer)[0]])
        return found

    def settings(self) -> dict[str, Any]:
        """peft's config of this side alone, as JSON-ready values."""
        ranks, alphas = self.ranks(), self.alphas()
        rank, alpha = (Counter(t.values()).most_common(1)[0][0] for t in (ranks, alphas))
        shared = {
            "r": rank,
            "target_modules": self._targets(sorted(ranks)),
            "rank_pattern": {f"^{self._whole(n)}": r for n, r in ranks.items() if r != rank},
            "alpha_pattern": {f"^{self._whole(n)}": a for n, a in alphas.items() if a != alpha},
        }
        made = self.adapter.model_copy(update={"rank": rank, "alpha": alpha}).config(shared)
        values = made.to_dict() | {"inference_mode": True}
        return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}

    def _targets(self, own: list[str]) -> list[str] | str:
        """The adapted modules. peft takes each name of a list for the end of any name, so where
        another module's ends alike they are one regular expression of whole names."""
        ends = [name.removeprefix(_STATE) for name in own]
        others = {name for name, _ in self.module.named_modules()} - set(own)
        if any(other.endswith(f".{end}") for other in others for end in ends):
            return "|".join(map(self._whole, own))
        return ends

    def _whole(self, name: str) -> str:
        """A regular expression of a module's whole name; of CLIP's, as any transformers has it."""
        if self.name != "text_encoder":
            return re.escape(name)
        return f"({re.escape(_STATE)})?{re.escape(name.removeprefix(_STATE))}"

    def digest(self) -> str:
        """Of the weights that the side stands on, as `weights_digest` gives it."""
        return weights_digest(self.plain())

    def plain(self) -> dict[str, Tensor]:
        """The weights of the base, by the names that they have without the adapter."""
        inside = {f"{name}." for name in self.layers()}
        found: dict[str, Tensor] = {}
        for key, value in self.module.state_dict().items():
            owner = next((prefix for prefix in inside if key.startswith(prefix)), None)
            if owner is None:
                found[key] = value
            elif key.startswith(f"{owner}base_layer."):
                found[owner + key.removeprefix(f"{owner}base_layer.")] = value
        return found


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of SHA-256 over tensors in 32 bits, by name; CLIP's under any of its names."""
    hasher = hashlib.sha256()
    for name, value in sorted((n.removeprefix(_STATE), v) for n, v in weights.items()):
        if value.is_floating_point():
            data = value.detach().float().cpu().contiguous()
            hasher.update(f"{name} {tuple(data.shape)}".encode())
            hasher.update(raw(data))
    return hasher.hexdigest()[:16]


def sides(run: Run, task: Task) -> list[Side]:
    """The sides that the run's adapters are on.

    Raises:
        ExportError: an adapter has no layers of peft, two are on one side, or one is on words.
    """
    found: list[Side] = []
    held = layers(task.model)
    words = [n for n, layer in held.items() if isinstance(layer.get_base_layer(), nn.Embedding)]
    if words and hasattr(task.model, "unet"):
        raise ExportError(
            f"{run.name}: an adapter is on {words[0]!r}, and no loader of diffusers takes "
            "one of an embedding. Export --to merged."
        )
    for name, path in places(task.model):
        module = task.model.get_submodule(path) if path else task.model
        called = sorted({called for layer in layers(module).values() for called in names(layer)})
        if not called:
            continue
        if len(called) > 1:
            raise ExportError(
                f"{run.name}: {', '.join(called)} are together on {name}; the format holds one "
                "adapter. Export --to merged."
            )
        (record,) = [a for n, a in enumerate(run.adapters) if f"{a.kind}{n}" == called[0]]
        assert isinstance(record, Tuner)  # only those have layers of peft
        found.append(Side(name, path, module, record))
    return found


def require_tuners(run: Run, what: str) -> None:
    """Refuses runs that a file of small matrices cannot hold.

    Raises:
        ExportError: the run has no adapter, or one of another kind.
    """
    if not run.adapters:
        raise ExportError(f"{run.name} has no adapters. Export it --to diffusers or --to diptych.")
    odd = [adapter.kind for adapter in run.adapters if not isinstance(adapter, Tuner)]
    if odd:
        raise ExportError(
            f"{run.name}: --to {what} holds matrices beside weights, not {odd[0]!r}. "
            f"Export --to {'embedding' if odd[0] == 'tokens' else 'merged'}."
        )


def require_kinds(adapters: tuple[Adapter, ...], kinds: Mapping[str, str], what: str) -> None:
    """Refuses kinds of adapters that the target's loader cannot read.

    Raises:
        ExportError: saying why; `kinds` maps a kind to the reason.
    """
    for adapter in adapters:
        if adapter.kind in kinds:
            raise ExportError(
                f"--to {what}: {adapter.kind} cannot be: {kinds[adapter.kind]}. "
                "Export --to peft or --to merged."
            )


def require_pipeline(found: list[Side], what: str) -> None:
    """Refuses sides that no pipeline of diffusers has.

    Raises:
        ExportError: naming the side.
    """
    odd = [side.name for side in found if side.name not in ("unet", "text_encoder")]
    if odd:
        raise ExportError(
            f"--to {what}: an adapter is on {odd[0]!r}, a module of our own that no pipeline of "
            "diffusers has. Export --to peft or --to merged, or train with on: [denoiser] of a "
            "model of kind unet."
        )


def places(model: Any) -> list[tuple[str, str]]:
    """(name, path) of the sides of a model, whether an adapter is on them or not."""
    if not hasattr(model, "unet"):
        return [("model", "")]
    clip = hasattr(model.context, "clip")
    return [("unet", "unet"), ("text_encoder", "context.clip") if clip else ("text", "context")]


@torch.no_grad()
def calls(side: Side, run: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """What the side's module is given while `run()` runs, and what it says."""
    kept: list[Any] = []
    hook = side.module.register_forward_hook(
        lambda _, args, kwargs, out: kept.append((args, kwargs, tensor_of(out))), with_kwargs=True
    )
    run()
    hook.remove()
    args, kwargs, out = kept[0]
    return args, kwargs, out


def tensor_of(out: Any) -> Tensor:
    """The first tensor of what a module returned."""
    if isinstance(out, Tensor):
        return out
    for name in ("sample", "last_hidden_state", "said_BCHW", "pooled_BD"):
        if isinstance(getattr(out, name, None), Tensor):
            return getattr(out, name)
    return out[0]
