"""What an adapter_config.json of peft says of the tensors beside it."""

import importlib
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

_FACTORS = ("LORA", "LOHA", "LOKR")
_AIMS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
_LAYERS = ("layers_to_transform", "layers_pattern")


def other_method(config: Mapping[str, Any]) -> str | None:
    """peft's name of a method that is none of products of small matrices; else None."""
    kind = str(config.get("peft_type") or "LORA")
    return None if kind in _FACTORS else kind


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
