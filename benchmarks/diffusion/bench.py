"""A step of latent diffusion against diffusers' own loop: `make bench-diffusion`.

The same U-Net, weights, frozen first stage and text encoder, photos and batch in one process, in
turns, on one thread in fp32: our rank with its stream, engine, average and ledger; the same with
latents from a cache; and a loop as `train_text_to_image.py` of diffusers, with its image folder,
accelerate and `EMAModel`. Ours comes twice a round, as a control. Nothing is timed before both give
the same latents, text states and loss. Memory is that of processes of their own.

    make bench-diffusion
    make bench-diffusion ARGS="--rounds 1 --steps 1 --batch 2"
"""

import argparse
import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diptych.cluster.engine import join_group

from ..ratios import Spread, ratio, spread, trusted, values
from ..rounds import Row, interleave, rows
from .arms import Ours, Stock, apart, operations
from .material import Material

ARMS = ("diffusers", "ours", "ours again", "ours, cached latents")
_TOLERANCE = (1e-4, 1e-5, 1e-5)
"""Of latents, text states and loss."""
FASTER, SHARE, BYTES = 1.15, 0.95, 0.6
"""The goals: without caches; of the ceiling with one; of its bytes to the JPEGs'."""


def main() -> None:
    """Checks, measures and prints; ends with 1 where a goal is missed."""
    given = _arguments()
    torch.set_num_threads(1)
    material = Material(given.home.absolute())
    material.prepare(given.photos)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_group(0, 1, "127.0.0.1", port, gpu=False)
    if given.alone:
        print(json.dumps(_alone(material, given)))
        return
    arms, counts = _arms(material, given.batch)
    record = given.home / f"rows-{given.batch}x{given.steps}.jsonl"
    for arm in arms.values():
        arm.go(1)
    interleave(
        "step",
        ARMS,
        lambda name: _timed(arms[name.removesuffix(" again")], given.steps),
        rounds=given.rounds,
        record=record,
        told=lambda row: print(f"  {row['round']} {row['arm']}: {row['wall_s']:.2f} s", flush=True),
    )
    memory = {arm: _memory(arm, given) for arm in arms}
    sys.exit(not report(list(rows(record)), counts, memory, material.bytes()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--photos",
        type=Path,
        default=Path("../shared/data/dreambooth-20.tar"),
        help="tar of photos",
    )
    parser.add_argument("--home", type=Path, default=Path(".bench/diffusion"))
    parser.add_argument("--alone", choices=ARMS, help="run this arm and say its memory")
    return parser.parse_args()


def _arms(material: Material, batch: int) -> tuple[dict[str, Any], dict[str, int]]:
    """All arms, after the check that they compute the same; and the model's operations."""
    ours = Ours(material, batch, cached=False)
    ours.task.model.unet.save_config(material.home / "unet")
    stock = Stock(material, batch, ours.task.model.unet)
    found = apart(ours, stock)
    print("ours = diffusers: latents {:.1e}, text states {:.1e}, loss {:.1e} apart".format(*found))
    if any(not off <= most for off, most in zip(found, _TOLERANCE, strict=True)):
        sys.exit("bench-diffusion: ours and diffusers do not compute the same")
    cached = Ours(material, batch, cached=True)
    [wanted, known] = (float(arm.task(_batch(arm)).total.detach()) for arm in (ours, cached))
    print(f"cached = live: loss {abs(known - wanted) / wanted:.1e} apart")
    if not abs(known - wanted) <= 1e-3 * wanted:  # the cache is float16
        sys.exit("bench-diffusion: the cached latents do not give the loss of the live ones")
    counts = operations(stock, batch)
    return {"diffusers": stock, "ours": ours, "ours, cached latents": cached}, counts


def _batch(arm: Ours) -> Any:
    return next(iter(arm.loader(1)))[1]


def _timed(arm: Any, steps: int) -> Row:
    wall, cpu = time.perf_counter(), time.process_time()
    arm.go(steps)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _alone(material: Material, given: argparse.Namespace) -> dict[str, float]:
    arm: Any
    if given.alone == "diffusers":
        config = json.loads((given.home / "unet" / "config.json").read_text())
        arm = Stock(material, given.batch, UNet2DConditionModel.from_config(config))
    else:
        arm = Ours(material, given.batch, cached=given.alone == ARMS[-1])
    arm.go(2)
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _memory(arm: str, given: argparse.Namespace) -> float:
    words = ["--alone", arm, "--home", str(given.home), "--photos", str(given.photos)]
    command = [sys.executable, "-P", "-m", "diptych.benchmarks.diffusion.bench", *words]
    done = subprocess.run(
        [*command, "--batch", str(given.batch)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])["peak_mib"]


def report(
    found: list[Row], counts: dict[str, int], memory: dict[str, float], sizes: tuple[int, int]
) -> bool:
    """Prints the tables; returns whether all goals are met."""
    total = sum(counts.values())
    ceiling = total / (total - counts["first stage"])
    print("\n| arm | wall s a turn | CPU s | MiB |\n|---|---|---|---|")
    for arm in ARMS:
        wall, cpu = (spread(list(values(found, arm, n).values())) for n in ("wall_s", "cpu_s"))
        print(f"| {arm} | {wall} | {cpu} | {memory.get(arm, memory['ours']):.0f} |")
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
    print(f"\noperations: {shares}; without the first stage at most {ceiling:.2f}x")
    jpegs, cache = sizes
    sound, again = trusted(found, "ours", "ours again", "cpu_s")
    print(f"control, CPU of ours again / ours: {again}{'' if sound else ': no verdict is due'}")
    verdicts: list[bool] = []
    for name in ("wall_s", "cpu_s"):
        faster = ratio(found, "diffusers", "ours", name)
        gained = ratio(found, "ours", "ours, cached latents", name)
        if faster is None or gained is None:
            return False
        part = Spread(*(n / ceiling for n in (gained.middle, gained.low, gained.high)))
        print(f"{name[:-2]}: diffusers / ours {_fine(faster)}, goal {FASTER}x: ", end="")
        print(f"{_met(faster.middle >= FASTER)}; live / cached {_fine(gained)},")
        print(f"  {_fine(part)} of the ceiling, goal {SHARE}: {_met(part.middle >= SHARE)}")
        verdicts += [faster.middle >= FASTER, part.middle >= SHARE]
    small = cache <= BYTES * jpegs
    print(f"cache {cache / jpegs:.2f} of the JPEGs' bytes, goal {BYTES}: {_met(small)}")
    return sound and small and all(verdicts)


def _fine(found: Spread) -> str:
    return f"{found.middle:.3f} [{found.low:.3f}-{found.high:.3f}]"


def _met(reached: bool) -> str:
    return "met" if reached else "NOT met"


if __name__ == "__main__":
    main()
