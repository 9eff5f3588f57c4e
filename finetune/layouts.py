"""The layouts of adapter files: which one a file has, and what its loaders want of it."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import factors, peft_settings

_PARTS = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_down|lora_mid|lora_up|lora\.down"
    r"|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up|lora_magnitude_vector|dora_scale"
    r"|lokr_\w+|hada_\w+|alpha)(\.weight)?$"
)
_OLD = re.compile(r"(unet\..+)\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")
"""As diffusers wrote until 0.22: alpha was always the rank."""
_PEFT = "base_model.model."
_LORA = re.compile(r"(^|[._])lora[._]")


@dataclass(frozen=True)
class Read:
    """What was read of a file: no tensor larger than one number."""

    file: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    scalars: Mapping[str, float]
    config: Mapping[str, Any]
    """adapter_config.json beside it, if there is one."""


def layout(seen: Read) -> str:
    """`peft`, `diffusers`, `kohya`, `embedding`, or `model` for everything else."""
    names = list(seen.shapes)
    if any(name.startswith(("lora_unet_", "lora_te")) for name in names):
        return "kohya"
    if seen.config or any(name.startswith("base_model.model.") for name in names):
        return "peft"
    if any(_part(name) or _LORA.search(name) for name in names):
        return "diffusers"
    small = len(names) <= 2 and all(len(shape) <= 2 for shape in seen.shapes.values())
    parts = any(name.endswith((".weight", ".bias")) for name in names)
    return "embedding" if small and names and not parts else "model"


def modules(seen: Read) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of each adapted module, the shapes of its parts by their names."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in seen.shapes.items():
        if part := _part(name):
            found.setdefault(part[0], {})[part[1]] = shape
    return found


def _part(name: str) -> tuple[str, str] | None:
    """The adapted module that a tensor is of, and which part of its adapter it is."""
    if old := _OLD.fullmatch(name):
        layer = "to_out.0" if old[2] == "to_out" else old[2]
        return f"{old[1]}.{layer}", f"processor.{old[3]}"
    match = _PARTS.search(name)
    return (name[: match.start()], match[1]) if match else None


def alphas(seen: Read) -> dict[str, float]:
    """Alpha of each adapted module, wherever the layout keeps it; those without are left out."""
    kind = layout(seen)
    if kind == "kohya":
        ends = ".alpha"
        return {n.removesuffix(ends): v for n, v in seen.scalars.items() if n.endswith(ends)}
    found: dict[str, float] = {}
    for module in modules(seen):
        side, name, config = _config(seen, module, kind)
        if (alpha := _setting(config, name, "alpha")) is not None:
            found[f"{side}.{name}"] = alpha
    return found


def _config(seen: Read, module: str, kind: str) -> tuple[str, str, Mapping[str, Any]]:
    """Side, name of the module there, and peft's config of that side."""
    if kind == "peft":
        told = json.loads(seen.metadata.get("diptych", "{}"))
        side = next(iter(told.get("bases", {})), "model")
        return side, module.removeprefix("base_model.model."), seen.config
    side, _, name = module.partition(".")
    settings = json.loads(seen.metadata.get("lora_adapter_metadata", "{}"))
    own = {n.partition(".")[2]: v for n, v in settings.items() if n.startswith(f"{side}.")}
    if not own and "r" in settings:  # of `unet.save_lora_adapter`, which writes no side
        return "unet", module, settings
    if side == "text_encoder" and not any(  # as newer versions of transformers name CLIP's layers
        n.startswith(f"{side}.text_model.")
        for n in json.loads(seen.metadata.get("diptych", "{}")).get("alphas", {})
    ):
        name = name.removeprefix("text_model.")
    return side, name, own


def _setting(config: Mapping[str, Any], module: str, what: str) -> float | None:
    """Alpha or rank of a module in peft's config; None where the config has none."""
    pattern: Mapping[str, Any] = (
        config.get("rank_pattern" if what == "r" else "alpha_pattern") or {}
    )
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    value = config.get("r") if what == "r" else config.get("lora_alpha", config.get("alpha"))
    return None if value is None else float(value)


def spoilt(seen: Read, kind: str) -> Iterator[str]:
    """Ranks and alphas of the settings that no loader can compute with; no rule holds then."""
    told: dict[str, Mapping[str, Any]] = {}
    if kind == "peft" and not peft_settings.other_method(seen.config):
        told["adapter_config.json"] = seen.config
    if kind == "diffusers":
        key = "lora_adapter_metadata"
        sides: dict[str, dict[str, Any]] = {}
        for name, value in json.loads(seen.metadata.get(key, "{}")).items():
            side, _, setting = name.rpartition(".")
            sides.setdefault(side, {})[setting] = value
        told |= {f"{key} {side}".rstrip(): config for side, config in sides.items()}
    for name, config in told.items():
        yield from (f"{name}: {said}." for said in peft_settings.spoilt(config))


def _told(seen: Read, found: Mapping[str, factors.Parts]) -> Iterator[str]:
    """What an adapter_config.json leaves out, or says of other tensors than those beside it."""
    yield from (f"adapter_config.json {said}." for said in peft_settings.absent(seen.config))
    method = seen.config.get("peft_type")
    odd = [n for n, parts in found.items() if peft_settings.of_another_method(seen.config, parts)]
    if odd:
        yield (
            f"{odd[0]} is made of {sorted(found[odd[0]])[0]} ({len(odd)} such), and its config's "
            f"peft_type is {method!r}, which makes no such tensors: peft takes none of them."
        )


def rules(seen: Read, kind: str) -> Iterator[str]:
    """What the loaders of a layout want, and the file has not."""
    found = modules(seen)
    if kind == "peft" and seen.config:
        yield from _told(seen, found)
    if kind in ("model", "embedding") or peft_settings.other_method(seen.config):
        return
    beside = peft_settings.saved_beside
    odd = [name for name in seen.shapes if not (_part(name) or beside(seen.config, name))]
    if odd:
        yield f"{odd[0]} belongs to no adapter ({len(odd)} such): loaders refuse or drop it."
    for name, parts in found.items():
        if parts.keys() <= {"alpha"}:
            yield f"{name}.alpha stands alone: its matrices are missing."
            return
        yield from _pairs(seen, kind, name, parts)
    aims = peft_settings.aims(seen.config)
    if aims and (strays := [n for n in found if not aims(n.removeprefix(_PEFT))]):
        yield (
            f"{strays[0]} is none of its config's target_modules ({len(strays)} such): peft drops "
            "it in silence."
        )
    if kind == "peft" and not seen.config:
        yield "adapter_config.json is missing beside it: peft cannot know rank and alpha."
    old = all(part.startswith("processor.") for parts in found.values() for part in parts)
    if (
        kind == "diffusers"
        and not (found and old)
        and not seen.metadata.get("lora_adapter_metadata")
    ):
        yield (
            "its metadata has no lora_adapter_metadata, so alpha is lost: diffusers takes it for "
            "the rank."
        )
    if kind == "kohya":
        yield from _kohya(seen, found)


def _pairs(seen: Read, kind: str, name: str, parts: factors.Parts) -> Iterator[str]:
    if lost := factors.lacking(parts):
        yield f"{name} has no {lost}: loaders refuse it."
        return
    wrong = [f"{name}: {said}" for said in factors.misfits(parts)]
    yield from wrong
    if wrong or kind == "kohya":
        return
    _, module, config = _config(seen, name, kind)
    rank = _setting(config, module, "r")
    for down, _ in factors.PAIRS:
        if down in parts and rank is not None and rank != parts[down][0]:
            yield f"{name} has rank {parts[down][0]}, its config says {rank:g}."
    if config.get("use_dora") and not factors.length_of(parts):
        yield f"{name} has no lora_magnitude_vector, and its config says DoRA."


def _kohya(seen: Read, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    lost = [name for name, parts in found.items() if "alpha" not in parts]
    if lost:
        yield (
            f"{lost[0]} has no alpha ({len(lost)} of {len(found)}): loaders take it for the rank."
        )
    if any("dora_scale" in parts for parts in found.values()):
        yield "it holds dora_scale, which diffusers drops: ComfyUI alone reads it."
    told = seen.metadata.get("ss_network_alpha")
    values = {seen.scalars[f"{name}.alpha"] for name in found if f"{name}.alpha" in seen.scalars}
    try:
        if told in (None, "Dynamic") or len(values) != 1:  # so LyCORIS calls several
            return
        (value,) = values
        if not math.isclose(float(told), value, rel_tol=1e-2):  # it may be rounded to 16 bits
            yield f"its alphas are {value:g}, ss_network_alpha says {told}."
    except ValueError:
        yield f"ss_network_alpha is no number: {told!r}."


def remarks(seen: Read, kind: str) -> Iterator[str]:
    """What only some loaders of a layout take."""
    if method := peft_settings.other_method(seen.config):
        yield f"it is peft's {method}, whose tensors are not looked into"
    parts = {part for each in modules(seen).values() for part in each}
    if kind == "kohya" and any(part.startswith(("lokr_", "hada_")) for part in parts):
        yield "it holds LoKr or LoHa, which diffusers refuses: ComfyUI and A1111 read it"
    sides = ("unet.", "text_encoder", "transformer.")
    if kind == "diffusers" and not any(name.startswith(sides) for name in seen.shapes):
        yield "its names have no side: `unet.load_lora_adapter(..., prefix=None)` alone takes it"


def against_base(seen: Read, kind: str, base: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What does not fit the modules of a base: `base[side]["shapes"]` by module."""
    if kind == "embedding":
        yield from _embedding(seen, base)
    if kind in ("model", "embedding") or peft_settings.other_method(seen.config):
        return
    fit = {name: _in_base(name, kind, base, seen) for name in modules(seen)}
    if strange := [name for name, where in fit.items() if where is None]:
        yield (
            f"{strange[0]} is no module of the base ({len(strange)} of {len(fit)} are none); the "
            "base is another, or a key was renamed."
        )
    yield from _left_bare(seen, kind, base)
    for name, parts in modules(seen).items():
        where = fit[name]
        if where is None or factors.lacking(parts) or any(factors.misfits(parts)):
            continue
        rows, columns = where[0], math.prod(where[1:])
        made = factors.weight(parts)
        if made and made != (rows, columns):
            yield f"{name} is for a weight of {made}, the base's is ({rows}, {columns})."
        held = factors.length_of(parts)
        if held and held[1] not in (rows, *where[1:2]):
            yield f"{name}: {held[0]} has {held[1]} numbers, the base's weight {rows} rows."


def _left_bare(seen: Read, kind: str, base: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Modules that peft's settings name, whose matrices are in no file: they would do nothing."""
    aims = peft_settings.aims(seen.config)
    if kind != "peft" or aims is None:
        return
    here = {_bare(name.removeprefix(_PEFT)) for name in modules(seen)}
    for each in base.values():
        there = {_bare(name) for name, shape in each["shapes"].items() if len(shape) > 1}
        lost = sorted(n for n in there - here if aims(n) or aims(f"text_model.{n}"))
        if there & here and lost:
            yield (
                f"{lost[0]} has no matrices, and its config's target_modules name it ({len(lost)} "
                "such): peft goes on with it untrained."
            )


def _bare(module: str) -> str:
    """Versions of transformers differ in whether CLIP's names begin with `text_model.`."""
    return module.removeprefix("text_model.")


def _embedding(seen: Read, base: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Words must be as wide as those of the base's text encoder, the one table that it looks up."""
    shapes: Mapping[str, tuple[int, ...]] = base.get("text_encoder", {}).get("shapes", {})
    widths = [shape[1] for name, shape in shapes.items() if name.endswith("token_embedding")]
    for name, shape in seen.shapes.items():
        if widths and shape and shape[-1] not in widths:  # A1111 keeps a step beside its words
            yield f"{name} is {shape[-1]} wide, the base's words are {widths[0]}."


def _in_base(
    name: str, kind: str, base: Mapping[str, Mapping[str, Any]], seen: Read
) -> tuple[int, ...] | None:
    """The shape of the base's weight that a module stands beside."""
    for side, each in base.items():
        for module, shape in each["shapes"].items():
            bare = module.removeprefix("text_model.")
            if kind == "kohya":
                heads = ("lora_te_text_model_", "lora_te1_text_model_")
                called = [h + bare.replace(".", "_") for h in heads]
                if side == "unet":
                    called = ["lora_unet_" + module.replace(".", "_")]
            elif kind == "peft":
                own = _config(seen, name, kind)[0]
                called = [f"base_model.model.{module}"] if own in (side, "model") else []
            else:
                called = [f"{side}.{module}", f"{side}.text_model.{bare}", f"{side}.{bare}", module]
            if name in called:
                return shape
    return None
