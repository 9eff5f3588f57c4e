"""When to stop: the most like the subject before the class is lost."""

from collections.abc import Sequence
from typing import NamedTuple

LIMIT = 0.25
"""Drift that is borne: a quarter of the way from the class to the subject, or as far away."""
VARIED = 0.5
"""Diversity of the class's pictures that must be left, as a share of the base's."""
_ENOUGH = 0.02
"""Of the room in similarity; less is no gain."""
_MORE = "Raise the learning rate or the steps; check that the base knows the class."
_KEEP = "Prior preservation, fewer steps or a lower learning rate "


class Look(NamedTuple):
    """What was measured after some steps."""

    step: int
    similarity: float
    """Of pictures of the subject's prompt to the subject's own pictures."""
    among: float
    """Of those among themselves."""
    drift: float
    """Of pictures of the class prompt towards the subject; see `metrics.subject.drift`."""
    diversity: float
    """Of pictures of the class prompt, as a share of the base's."""


class Advice(NamedTuple):
    """Which step to take, and why."""

    step: int
    text: str


def lost(look: Look, limit: float = LIMIT) -> str:
    """What happened to the class if it was not kept, in words; empty if it was.

    It may become the subject, become something else than both, or become one picture.
    """
    if look.drift > limit:
        return f"{look.drift:.0%} of the way the class has become the subject"
    if look.drift < -limit:
        return f"the class has moved away from the subject, by {-look.drift:.0%} of their distance"
    if look.diversity < VARIED:
        return f"pictures of the class differ {look.diversity:.0%} as much as the base's"
    return ""


def advise(looks: Sequence[Look], limit: float = LIMIT) -> Advice:
    """The step with the highest similarity among those that keep the class.

    The first look is of the base itself, step 0.

    Args:
        looks: in order of their steps.
        limit: drift that is borne, towards the subject or away from it.
    """
    good = [look for look in looks if not lost(look, limit)] or [looks[0]]
    best, last = max(good, key=lambda look: (look.similarity, -look.step)), looks[-1]
    room = max(last.among - looks[0].similarity, 1e-6)
    gain = (last.similarity - best.similarity) / room
    if best.step == 0:
        bad = next((look for look in looks if lost(look, limit)), None)
        why = f"By step {bad.step} {lost(bad, limit)}. {_KEEP}keep it." if bad else _MORE
        text = f"No step made the subject more like itself and kept the class. {why}"
    elif best.step < last.step and lost(last, limit):
        text = (
            f"Stop at step {best.step}: similarity {best.similarity:.3f} at a drift of "
            f"{best.drift:.0%}. By step {last.step} similarity is {last.similarity:.3f}, and "
            f"{lost(last, limit)}. {_KEEP}keep it."
        )
    elif best.step < last.step and gain <= _ENOUGH:
        text = f"Step {best.step} is as good as step {last.step}: fewer steps will do."
    else:
        grew = len(looks) > 2 and last.similarity - looks[-2].similarity > _ENOUGH * room
        more = " It was still rising: more steps may help." if grew else ""
        text = (
            f"Take the last step, {best.step}: similarity {best.similarity:.3f}, drift "
            f"{best.drift:.0%}, within {limit:.0%}.{more}"
        )
    return Advice(best.step, text)
