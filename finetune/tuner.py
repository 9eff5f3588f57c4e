"""What the adapters of peft share: which modules they are put beside, with what rank."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from ..errors import RecipeError
from ..pretrain.adapter import Adapter, Site

ATTENTION = (
    r"(.*\.)?(attn\d*|attend|read|look|self_attn|blocks\.\d+)(\.\d+)?"
    r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj|ask|answer|qkv|query|key|value|out)"
)
"""The projections of attention, as diffusers, transformers and our own models name them."""


class Tuner(Adapter):
    """Small matrices beside the weights of some modules; peft does the maths."""

    rank: int = Field(default=4, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    """What the matrices say is multiplied by alpha / rank; by default the rank itself, so 1."""
    targets: tuple[str, ...] = (ATTENTION,)
    """Regular expressions of whole names of modules; by default the projections of attention."""
    ranks: Mapping[str, Annotated[int, Field(ge=1)]] = {}
    """Other ranks for some of them: a regular expression of whole names -> rank."""
    alphas: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    """Other alphas likewise."""
    adapts: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    def config(self, shared: dict[str, Any]) -> Any:
        """peft's config; `shared` holds target_modules and the patterns of rank and alpha."""
        raise NotImplementedError(f"adapter {self.kind!r} has no config")

    def put(self, site: Site) -> Iterable[nn.Parameter]:
        from peft import inject_adapter_in_model  # imports for seconds

        made = self.config(self.shared(found_modules(self, site)))
        before = {id(param) for param in site.model.parameters()}
        inject_adapter_in_model(made, site.model, adapter_name=site.name)
        del site.model.peft_config  # which it would warn of when another one comes
        for layer in layers(site.model).values():  # peft leaves but the newest one switched on
            layer.set_adapter(names(layer))
        yield from (p for p in site.model.parameters() if id(p) not in before)

    def shared(self, found: Iterable[str]) -> dict[str, Any]:
        """What the configs of all of peft's adapters have, for modules of these names."""
        found = sorted(found)
        ranks = {name: _of(self.ranks, name, self.rank) for name in found}
        alphas = {name: _of(self.alphas, name, self.alpha or ranks[name]) for name in found}
        rank, alpha = self.rank, float(self.alpha or self.rank)
        # Without ^ peft takes a key for the end of any name.
        return {
            "r": rank,
            "target_modules": "|".join(map(re.escape, found)),
            "rank_pattern": {f"^{re.escape(n)}": r for n, r in ranks.items() if r != rank},
            "alpha_pattern": {f"^{re.escape(n)}": a for n, a in alphas.items() if a != alpha},
        }


def _of(table: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    found = [value for pattern, value in table.items() if re.fullmatch(pattern, name)]
    return found[0] if found else otherwise


def found_modules(record: Tuner, site: Site) -> list[str]:
    """Names of the modules that a record means.

    Raises:
        RecipeError: a pattern matches none or is no regular expression, or another adapter stands
            beside a module already.
    """
    taken = {n: layer for n, layer in layers(site.model).items() if site.inside(n)}
    within = tuple(f"{name}." for name in taken)
    named = {
        **{n: m for n, m in site.model.named_modules() if not n.startswith(within)},
        **{name: layer.get_base_layer() for name, layer in taken.items()},
    }
    fit = [n for n, m in named.items() if site.inside(n) and isinstance(m, record.adapts)]
    for pattern in (*record.targets, *record.ranks, *record.alphas):
        try:
            if not any(re.fullmatch(pattern, name) for name in fit):
                some = ", ".join(fit[:: max(1, len(fit) // 6)])
                raise RecipeError(
                    f"adapter {record.kind!r}: {pattern!r} is the whole name of no module that it "
                    f"could be put beside. There are: {some or 'none'}."
                )
        except re.error as err:
            raise RecipeError(f"adapter {record.kind!r}: {pattern!r}: {err}.") from err
    found = [n for n in fit if any(re.fullmatch(pattern, n) for pattern in record.targets)]
    if twice := [name for name in found if name in taken]:
        raise RecipeError(
            f"adapter {site.name!r} and {names(taken[twice[0]])[0]!r} before it both want module "
            f"{twice[0]!r} ({len(twice)} such). Give them other parts (`on`) or other `targets`, "
            "or train them in two runs."
        )
    return found


def layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers in a model, by name."""
    return {n: m for n, m in model.named_modules() if hasattr(m, "adapter_layer_names")}


def names(layer: Any) -> list[str]:
    """Adapters of a layer of peft."""
    tables = [getattr(layer, name) for name in layer.adapter_layer_names]
    return sorted({name for table in tables for name in table})
