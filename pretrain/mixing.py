"""Objectives one a batch, by shares (UNITER, Chen et al. 2020), the same on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..data.draws import row_key, uniform
from .objective import Objective


@dataclass(frozen=True)
class Mixing:
    """Which objectives train at a step: a pure function of the seed and the step, and so the same
    at any world size and after any restart."""

    seed: int
    groups: tuple[tuple[str, ...], ...]
    """Kinds of objectives that share a batch."""
    shares: tuple[float, ...]
    """Of the steps, by group; they add up to 1."""

    def at(self, step: int) -> tuple[str, ...]:
        """The kinds of objectives that train at a step."""
        draw = float(uniform(torch.tensor([row_key(self.seed, "mixing", step)]), "mixing", 1))
        for group, share in zip(self.groups, self.shares, strict=True):
            draw -= share
            if draw < 0:
                return group
        return self.groups[-1]


def mixing(seed: int, ratios: Mapping[str, float], kinds: Sequence[str]) -> Mixing | None:
    """From a recipe's `{mlm: 2, mrm: 1, itm+wra: 1}`; None where it says nothing.

    Args:
        seed: of the run.
        ratios: share of the steps, relative to the others', by kinds joined by `+`.
        kinds: of the run's objectives.

    Raises:
        ValueError: a kind that is none of the run's, one that is never trained, or a share of
            which no step would be left.
    """
    if not ratios:
        return None
    groups = tuple(tuple(part.strip() for part in name.split("+")) for name in ratios)
    named = [kind for group in groups for kind in group]
    wrong, lost = sorted(set(named) - set(kinds)), sorted(set(kinds) - set(named))
    if wrong:
        raise ValueError(f"mixing names {wrong[0]!r}; the objectives are {', '.join(kinds)}")
    if lost:
        raise ValueError(f"mixing leaves out {lost[0]!r}; give it a share, or drop the objective")
    if min(ratios.values()) <= 0:
        raise ValueError(f"mixing: {dict(ratios)} has a share that is not above 0")
    whole = sum(ratios.values())
    return Mixing(seed, groups, tuple(share / whole for share in ratios.values()))


def require_read(objectives: Sequence[Objective], turns: Mixing | None) -> None:
    """Raises ValueError where an objective would learn of no row, since another of its batch has
    them all read from left to right."""
    kinds = tuple(objective.kind for objective in objectives)
    for group in turns.groups if turns else (kinds,):
        here = [objective for objective in objectives if objective.kind in group]
        one_way = [objective.kind for objective in here if objective.one_way]
        blind = [objective.kind for objective in here if objective.both_ways]
        if one_way and blind:
            raise ValueError(
                f"{one_way[0]} has every text read from left to right, where {blind[0]} cannot see "
                f"it. Let them take turns, mixing={{{one_way[0]}: 1, {blind[0]}: 1}}, or leave "
                "one out"
            )
