"""Ranks that make no progress: when that is so, which of them is to blame, and where it stands."""

import re
from typing import Any

import ray
from ray.exceptions import RayError

from .job import Event, Pulse

_PATIENCE = 10
"""A first step, waiting for data, saving and drawing may take so many times as long as a step."""
_ANSWER_S = 8.0
_WAITING = ("distributed_c10d.py", "deepspeed/comm/torch.py")
"""What is on the stack of a rank that only waits for another."""


def hung(pulses: list[Pulse], hang_s: float) -> bool:
    """Whether a rank's process stands still, or no rank has moved for too long.

    A rank that waits for its data keeps the others waiting, and so they alone prove nothing.
    """
    frozen = any(pulse.still_s > _limit(pulse, hang_s) for pulse in pulses)
    return frozen or all(pulse.quiet_s > _limit(pulse, hang_s) for pulse in pulses)


def blame(actors: list[Any], pulses: list[Pulse]) -> tuple[str, list[Event]]:
    """Names the ranks that keep the others waiting; also each rank's stack, for its log."""
    stacks = [_answer(stack) for stack in [actor.stack.remote() for actor in actors]]
    busy = [
        rank for rank, stack in enumerate(stacks) if not any(sign in stack for sign in _WAITING)
    ]
    busy = busy or list(range(len(actors)))
    said = [
        f"rank {rank} is stuck at step {pulses[rank].step} ({pulses[rank].doing}, for "
        f"{pulses[rank].quiet_s:.0f} s) in {_top(stacks[rank])}"
        for rank in busy
    ]
    events = [Event("log", rank, {"text": stack}) for rank, stack in enumerate(stacks)]
    return "; ".join(said), events


def _limit(pulse: Pulse, hang_s: float) -> float:
    return hang_s if pulse.doing == "step" else _PATIENCE * hang_s


def _answer(stack: Any) -> str:
    try:
        return ray.get(stack, timeout=_ANSWER_S)
    except RayError as err:
        return f"no stack: its host does not answer ({type(err).__name__})"


def _top(stack: str) -> str:
    """The main thread's innermost calls; faulthandler writes that thread last."""
    lines = [line.strip() for line in re.split("(?:T|Current t)hread 0x", stack)[-1].splitlines()]
    calls = [line for line in lines if line.startswith("File ")]
    return " < ".join(calls[:3]) or (stack.splitlines() or ["an unknown place"])[0]
