"""A training step against transformers of the same sizes and weights: `make bench-vlp`.

Arms take turns, round by round, on one thread in fp32; the fastest of ours runs twice a round, as
a control. Before anything is timed each arm must give the loss and the gradients of the one that it
is held against. CPU milliseconds are of the thread, so that a busy machine moves them little.
"""

import argparse
import platform
import sys
from pathlib import Path

import torch

from ..ratios import Spread, ratio, spread, trusted, values
from ..rounds import Row, interleave, rows
from . import text, vilt
from .stock import Arm, compare, timed

LOSS, GRADIENT = 1e-5, 1e-4
"""Largest relative differences of arms that compute the same."""
PARTS = {"text": text, "vilt": vilt}
SAME = {
    "text": [
        ("packed", "padded", False),
        ("padded, head everywhere", "padded", False),
        ("padded", "transformers", True),
        ("padded", "transformers eager", True),
    ],
    "vilt": [
        ("packed", "padded", False),
        ("packed, three passes", "padded, three passes", False),
        ("padded", "transformers, one pass", True),
        ("padded, three passes", "transformers", True),
    ],
}
"""(arm, the one that it must equal, whether that one is transformers')."""
GOALS = {"text": 5.0, "vilt": 2.0}
STEPS = {
    "text": [
        ("own layers", "transformers", "padded, head everywhere"),
        ("head on masked words alone", "padded, head everywhere", "padded"),
        ("packing", "padded", "packed"),
    ],
    "vilt": [
        ("own layers, SDPA, head on masked words", "transformers", "padded, three passes"),
        ("packing", "padded, three passes", "packed, three passes"),
        ("one pass for all objectives", "packed, three passes", "packed"),
    ],
}
"""Where it comes from: (what, from which arm, to which)."""


def main() -> None:
    """Checks, measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of an arm in a round")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--only", choices=sorted(PARTS))
    parser.add_argument("--home", type=Path, default=Path(".bench/vlp"))
    told = parser.parse_args()
    torch.set_num_threads(1)
    told.home.mkdir(parents=True, exist_ok=True)
    record: Path = told.home / f"rows-{told.rows}x{told.steps}.jsonl"
    short = False
    for name, part in PARTS.items():
        if told.only in (None, name):
            arms, fill = part.arms(told.steps + 1, told.rows)
            check(name, arms, part.names())
            interleave(
                name,
                list(arms),
                lambda arm, arms=arms: timed(arms[arm], range(told.steps + 1)),
                rounds=told.rounds,
                record=record,
                told=lambda row: print(f"  {row['part']} {row['arm']}: {row['cpu_ms']:.0f} ms"),
            )
            found = [row for row in rows(record) if row["part"] == name]
            short = not report(name, found, list(arms), fill) or short
    sys.exit(short)


def check(part: str, arms: dict[str, Arm], names: dict[str, str]) -> None:
    """Ends where two arms that must compute the same do not."""
    for arm, other, theirs in SAME[part]:
        loss, gradient = compare(arms[arm], arms[other], names if theirs else None)
        print(f"{part}: {arm} = {other}: loss {loss:.1e}, gradients {gradient:.1e} apart")
        if not (loss <= LOSS and gradient <= GRADIENT):
            sys.exit(f"{part}: {arm!r} and {other!r} do not compute the same")


def report(part: str, found: list[Row], arms: list[str], fill: float) -> bool:
    """Prints a table; returns whether the goal is met."""
    print(f"\n{part}: CPU ms a step, median [range] of {len(values(found, 'packed', 'cpu_ms'))} ")
    print(f"rounds, {platform.processor() or platform.machine()}, torch {torch.__version__}; ")
    print(f"real tokens {fill:.0%} of all places, at most {1 / fill:.2f}x by packing\n")
    print(f"| {'arm':32} | {'step':22} | {'without optimiser':22} | {'x':18} |\n|---|---|---|---|")
    for arm in arms:
        whole, learn = (
            spread(list(values(found, arm, n).values())) for n in ("cpu_ms", "learn_ms")
        )
        print(
            f"| {arm:32} | {whole!s:22} | {learn!s:22} | {_of(found, 'transformers', arm)!s:18} |"
        )
    print()
    for what, before, after in STEPS[part]:
        gained = ratio(found, before, after, "cpu_ms")
        alone = ratio(found, before, after, "learn_ms")
        print(f"{what}: {gained} ({alone} without the optimiser)")
    before, after = next((b, a) for what, b, a in STEPS[part] if what == "packing")
    packing = ratio(found, before, after, "learn_ms")
    sound, again = trusted(found, "packed", "packed again", "cpu_ms")
    best = ratio(found, "transformers", "packed", "cpu_ms")
    if packing is None or best is None:
        return False
    share = packing.middle * fill
    met = sound and best.middle >= GOALS[part]
    print(f"packing gives {share:.2f} of what the fill allows (goal 0.8, without the optimiser)")
    print(f"control: packed again / packed {again}{'' if sound else ': no verdict is due'}")
    print(f"goal {GOALS[part]}x: {best} {'met' if met else 'NOT met'}\n")
    return met


def _of(found: list[Row], over: str, under: str) -> Spread | None:
    return ratio(found, over, under, "cpu_ms")


if __name__ == "__main__":
    main()
