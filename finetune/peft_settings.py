"""What an adapter_config.json of peft says of the tensors beside it."""

import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

_FACTORS = ("LORA", "LOHA", "LOKR")
_PREFIXES = {"LORA": "lora_", "ADALORA": "lora_", "LOHA": "hada_", "LOKR": "lokr_"}
_DEFAULT = 8
"""Of peft, for the rank and for alpha."""
_ALPHAS = ("lora_alpha", "alpha")
_AIMS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
_LAYERS = ("layers_to_transform", "layers_pattern")


def other_method(config: Mapping[str, Any]) -> str | None:
    """peft's name of a method that is none of products of small matrices; else None."""
    kind = str(config.get("peft_type") or "LORA")
    return None if kind in _FACTORS else kind


def spoilt(config: Mapping[str, Any]) -> Iterator[str]:
    """Clauses of what peft cannot compute with: ranks and alphas that are no such numbers."""
    told = {name: config.get(name) for name in ("r", *_ALPHAS)}
    for table in ("rank_pattern", "alpha_pattern"):
        values: Any = config.get(table) or {}
        if not isinstance(values, dict):
            yield f"{table} is {values!r}, which is no table of modules"
            continue
        for pattern, value in cast(dict[str, Any], values).items():
            told[f"{table} of {pattern!r}"] = value
            try:
                re.compile(pattern)
            except re.error as err:
                yield f"{table} of {pattern!r} is no regular expression: {err}"
    for name, value in told.items():
        whole = name.startswith("r")
        if value is None or (_is_number(value) and (not whole or _is_rank(value))):
            continue
        yield f"{name} is {value!r}, which is no {'whole number above 0' if whole else 'number'}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: float) -> bool:
    return isinstance(value, int) and value > 0


def absent(config: Mapping[str, Any]) -> Iterator[str]:
    """Clauses of what peft would take for something else in silence, or not open without."""
    if not config.get("peft_type"):
        yield "has no peft_type, without which peft opens nothing"
    if other_method(config):
        return
    if config.get("r") is None:
        yield f"has no r: peft takes {_DEFAULT} for the rank"
    if all(config.get(name) is None for name in _ALPHAS):
        yield f"has no alpha: peft takes {_DEFAULT}"


def of_another_method(config: Mapping[str, Any], parts: Iterable[str]) -> bool:
    """Whether parts of a module's adapter are none of those that peft's method makes."""
    kind = config.get("peft_type")
    prefix = _PREFIXES.get(str(kind))
    return bool(kind) and not (prefix and any(part.startswith(prefix) for part in parts))


def aims(config: Mapping[str, Any]) -> Callable[[str], bool] | None:
    """Whether peft puts the adapter beside a module of some name, asked of peft itself.

    None where the settings do not name modules: peft would choose them by the model.
    """
    targets = config.get("target_modules")
    if not targets or targets == "all-linear" or other_method(config):
        return None
    tuners: Any = importlib.import_module("peft.tuners.tuners_utils")  # imports for seconds
    told = SimpleNamespace(**{name: config.get(name) for name in (*_AIMS, *_LAYERS)})
    return lambda module: bool(tuners.check_target_module_exists(told, module))


def saved_beside(config: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor is no factor, and yet one that peft keeps: a whole module, a bias."""
    whole: list[str] = config.get("modules_to_save") or []
    if any(re.search(rf"\.{re.escape(each)}\.", name) for each in whole):
        return True
    biased = config.get("bias", "none") != "none" or config.get("lora_bias")
    words = config.get("trainable_token_indices")
    return bool((biased and name.endswith(".bias")) or (words and "trainable_tokens" in name))
