"""torch.compile of the blocks that a model repeats, in place.

Regions, not the whole: a block is compiled once for all its copies, names of weights stay as they
are, and what no compiler follows (packing, masks that depend on a batch) stays outside.
"""

from collections import Counter

from torch import nn

from ..errors import RecipeError


def compile_blocks(model: nn.Module) -> Counter[str]:
    """Compiles the repeated blocks; returns how many of each class.

    Sizes are symbols, so that buckets and texts of several sizes share the code of one. Nothing is
    compiled before the first batch.

    Raises:
        RecipeError: the model repeats no block.
    """
    found = blocks(model)
    if not found:
        raise RecipeError(
            f"{type(model).__name__} repeats no block, and only such are compiled. "
            "Set compile=false in the shape."
        )
    for block in found:
        block.compile(dynamic=True)
    return Counter(type(block).__name__ for block in found)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of alike modules that have modules of their own.

    A list of plain layers (`Linear`, `LayerNorm`, ...) is none: torch's own are fast as they are.
    Of a module of diffusers, what its `_repeated_blocks` names.
    """
    named: list[str] | None = getattr(model, "_repeated_blocks", None)
    if named is not None:
        return [module for module in model.modules() if type(module).__name__ in named]
    if isinstance(model, nn.ModuleList) and _repeats(model):
        return list(model)
    return [block for child in model.children() for block in blocks(child)]


def _repeats(members: nn.ModuleList) -> bool:
    alike = len({type(member) for member in members}) == 1
    lists = any(isinstance(member, nn.ModuleList) for member in members)
    return alike and not lists and any(members[0].children())
