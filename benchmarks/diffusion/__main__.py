"""What text-conditional latent diffusion learns on easy-VQA: `make reproduce-diffusion`.

Trains a classifier and a denoiser ("a teal triangle", in TAEF2 latents of 64-pixel images), and
shorter ones that it is compared with; draws galleries and asks the classifier what they show: a
guidance sweep, a steps sweep at eta 0 and 1, average against last weights, no caption dropout, v,
epsilon and flow at equal steps. Runs go on from their checkpoints and galleries from their shards; a
gallery that is judged is a line of results.jsonl. The same command goes on until it says done.

    make reproduce-diffusion                      # at most 40 minutes on 2 cores; again
    make reproduce-diffusion ARGS="--minutes 1 --steps 20 --others 10 --every 10 --samples 8 --home /tmp/quick --docs /tmp/quick"
"""  # noqa: E501

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from diptych.config import to_yaml
from diptych.data import storage
from diptych.finetune.judge import network
from diptych.pretrain.checkpoint import steps
from diptych.pretrain.encoders import Taef2
from diptych.pretrain.recipes import TAEF2
from diptych.pretrain.run import Run

from . import sets
from .cells import Plan, judges, sheets
from .report import report
from .runs import Sizes, recipes

_COMMAND = (sys.executable, "-P", "-m", "diptych", "train")


def main() -> None:
    """Goes on with the reproduction for a while."""
    given = _arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    until = time.monotonic() + 60 * given.minutes
    home: Path = given.home.absolute()
    sizes = Sizes(given.steps, given.others, given.every, given.classifier)
    plan = Plan(sizes, given.samples)
    taef2 = storage.absolute(given.taef2)
    sets.prepare(home / "easy", taef2)
    runs = home / "runs"
    missing = ""
    for run in recipes(home / "easy", taef2, sizes):
        ended = _steps(runs, run.name) == run.steps
        if not ended and (given.only == "judge" or not _train(run, home, until)):
            missing = missing or run.name
    if given.only != "train":
        missing = _judge(plan, home, taef2, until) or missing
    print(f"{missing} is not done; the same command goes on." if missing else "done: all is there.")
    drawn = (
        {} if _steps(runs, plan.headline.run) < sizes.steps else sheets(plan, runs, home / "sheets")
    )
    report(plan, _rows(home), runs, drawn, given.docs)


def _arguments() -> argparse.Namespace:
    usual = Sizes()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=40, help="stop what runs after so many")
    parser.add_argument("--steps", type=int, default=usual.steps, help="of the denoiser")
    parser.add_argument("--others", type=int, default=usual.others, help="of those beside it")
    parser.add_argument("--every", type=int, default=usual.every, help="steps to a checkpoint")
    parser.add_argument("--classifier", type=int, default=usual.classifier, help="its steps")
    parser.add_argument("--samples", type=int, default=96, help="of a gallery; the first has 4x")
    parser.add_argument(
        "--only", choices=["train", "judge"], help="do this of the two, as far as it goes"
    )
    parser.add_argument("--taef2", default=TAEF2, help="folder of the first stage's weights")
    parser.add_argument("--home", type=Path, default=Path(".bench/reproduce-diffusion"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    return parser.parse_args()


def _train(run: Run, home: Path, until: float) -> bool:
    """Trains a run to its end, or until a time; whether it ended."""
    left = until - time.monotonic()
    if left <= 0:
        return False
    recipe = home / "recipes" / f"{run.name}.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(to_yaml(run))
    where = ("--runs", str(home / "runs"), "--shape", "one")
    shape = ("--shape-set", "keep_checkpoints=100", "--shape-set", "hang_s=3600")
    child = subprocess.Popen([*_COMMAND, str(recipe), *where, *shape])
    try:
        code = child.wait(left)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # it keeps a checkpoint and ends
        child.wait()
        return _steps(home / "runs", run.name) == run.steps
    if code:
        sys.exit(
            f"training {run.name} ended with {code}; its log is in {home}/runs/{run.name}/logs"
        )
    return True


def _steps(runs: Path, name: str) -> int:
    """How far a run has come."""
    return max(steps(str(runs / name)), default=0) if (runs / name).exists() else 0


def _judge(plan: Plan, home: Path, taef2: str, until: float) -> str:
    """Draws and judges what can be, until a time; returns the name of the first that is left."""
    done = {row["name"] for row in _rows(home)}
    left = [cell for cell in plan.all() if cell.name not in done]
    panel = None
    for cell in left:
        there = _steps(home / "runs", cell.run) >= cell.step
        if time.monotonic() > until:
            break
        if not there:
            continue
        panel = panel or judges(
            home / "easy",
            home / "runs",
            network(Taef2(weights=f"{taef2}/taef2_encoder.safetensors")),
        )
        began = time.perf_counter()
        row = panel.run(cell, home / "runs")
        row["seconds"] = round(time.perf_counter() - began, 1)
        with open(home / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        done.add(cell.name)
        hits = {name: round(v, 3) for name, v in row.items() if name.startswith("accuracy.")}
        print(f"{cell.name}: {row['seconds']:.0f} s, {hits}", flush=True)
    return next((cell.name for cell in left if cell.name not in done), "")


def _rows(home: Path) -> list[dict[str, object]]:
    record = home / "results.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
