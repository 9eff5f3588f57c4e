"""Which elements of which parameter a rank's optimiser holds, at any ZeRO stage.

DeepSpeed keeps fp32 weights and moments whole (stage 0), or as this rank's part of flat buffers
with padding at their ends (1, 2, 3). Here they are named runs of elements: views, not copies.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..pretrain.checkpoint import WEIGHT
from ..pretrain.slices import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")


class _Part(NamedTuple):
    """Elements [offset, offset + length) of a parameter are `whole[start : start + length]`."""

    param: str
    offset: int
    length: int
    whole: Tensor
    """What the torch optimiser steps on, fp32."""
    start: int


def held(engine: Any) -> list[Piece]:
    """Weights and moments that this rank's optimiser steps on."""
    base, found = optimiser(engine), list[Piece]()
    for part in _parts(engine):
        state = _state(base, part.whole)
        tensors = {WEIGHT: part.whole.data, **{kind: state[kind] for kind in MOMENTS}}
        for kind, tensor in tensors.items():
            view = tensor.view(-1).narrow(0, part.start, part.length)
            found.append((part.param, kind, part.offset, view))
    return found


def owned(engine: Any, rank: int, world: int) -> list[Piece]:
    """Of `held`, what this rank alone is to keep: together the ranks own every element once.

    Without ZeRO every rank holds all; each then owns an equal run of every parameter.
    """
    if _partitioned(engine):
        return held(engine)
    found: list[Piece] = []
    for param, kind, offset, data in held(engine):
        first, last = _share(data, rank, world)
        if first < last:
            found.append((param, kind, offset + first, data[first:last]))
    return found


@torch.no_grad()
def spread(engine: Any) -> None:
    """Without ZeRO, gives each rank the weights that others own; all were changed by their owners.

    With ZeRO `renew` does it. Every rank calls it.
    """
    world = dist.get_world_size()
    if world == 1 or _partitioned(engine):
        return
    for _, kind, _, data in held(engine):
        for rank in range(world) if kind == WEIGHT else ():
            first, last = _share(data, rank, world)
            if first < last:
                dist.broadcast(data[first:last], src=rank)


def _partitioned(engine: Any) -> bool:
    """Whether ZeRO splits what this engine trains among the ranks."""
    return hasattr(engine.optimizer, "partition_count")


def _share(data: Tensor, rank: int, world: int) -> tuple[int, int]:
    """The elements of a tensor that every rank holds which one rank owns."""
    return data.numel() * rank // world, data.numel() * (rank + 1) // world


def shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every trained parameter."""
    named = engine.module.named_parameters()
    return {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in named if p.requires_grad}


def keep_whole(engine: Any, params: Iterable[Tensor]) -> None:
    """At stage 3, has every rank keep all of some parameters, as it does with small ones.

    DeepSpeed fetches a parameter for the module that it belongs to, and takes it away after that.
    What others use too must stay.
    """
    zero: Any = engine.optimizer
    for param in params if hasattr(zero, "persistent_parameters") else ():
        kept: Any = param
        kept.is_external_param = True  # what belongs to others is left alone while they compute
        if not kept.ds_persist:
            kept.ds_persist = True  # and is fetched anew after each step
            zero.persistent_parameters.append(kept)


@torch.no_grad()
def renew(engine: Any) -> None:
    """Makes the weights that are computed with those of `held`; every rank calls it."""
    zero = engine.optimizer
    if hasattr(zero, "fp16_partitioned_groups"):  # stage 3
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    elif hasattr(zero, "update_lp_params"):  # stages 1 and 2
        zero.update_lp_params()
    elif hasattr(zero, "fp32_groups"):  # bf16 without ZeRO
        for ours, theirs in _pairs(zero):
            theirs.data.copy_(ours.data)


def optimiser(engine: Any) -> Any:
    """The torch optimiser at the bottom; without ZeRO and in fp32 it is the engine's own."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def steps(engine: Any) -> float:
    """Steps that the torch optimiser has taken."""
    states = list(optimiser(engine).state.values())
    return float(states[0]["step"]) if states else 0.0


def set_steps(engine: Any, step: float) -> None:
    """Makes the torch optimiser believe that it has taken `step` steps."""
    for state in optimiser(engine).state.values():
        if "step" in state:
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), step)


def _parts(engine: Any) -> Iterator[_Part]:
    zero = engine.optimizer
    names = {id(param): name for name, param in engine.module.named_parameters()}
    if hasattr(zero, "fp16_partitioned_groups"):
        yield from _parts_of_weights(zero, names)
    elif hasattr(zero, "single_partition_of_fp32_groups"):
        for name, param in engine.module.named_parameters():
            if mapping := getattr(param, "_hp_mapping", None):
                flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
                place = mapping.hp_fragment_address
                offset = mapping.lp_fragment_address.start
                yield _Part(name, offset, place.numel, flat, place.start)
    elif hasattr(zero, "fp32_groups"):
        for ours, theirs in _pairs(zero):
            yield _Part(names[id(theirs)], 0, ours.numel(), ours, 0)
    else:
        for name, param in engine.module.named_parameters():
            if param.requires_grad:
                yield _Part(name, 0, param.numel(), param, 0)


def _parts_of_weights(zero: Any, names: dict[int, str]) -> Iterator[_Part]:
    """Stage 3: every parameter is cut into equal parts, the last one padded; a rank has one."""
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        start = 0
        for param in group:
            size = param.partition_numel()
            offset = zero._get_param_partition_rank(param) * size
            length = min(size, param.ds_numel - offset)
            if length > 0:
                yield _Part(names[id(param)], offset, length, flat, start)
            start += size


def _pairs(zero: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(fp32 weights, the bf16 parameter that is computed with)."""
    for ours, theirs in zip(zero.fp32_groups, zero.fp16_groups, strict=True):
        yield from zip(ours, theirs, strict=True)


def _state(base: Any, whole: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a tensor; made empty where no step has been taken."""
    state: dict[str, Tensor] = base.state[whole]
    if "step" not in state:
        place = whole.device if base.defaults.get("fused") else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=place)
        state.update({kind: torch.zeros_like(whole) for kind in MOMENTS})
    return state
