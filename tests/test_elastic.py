"""A run whose nodes come and go: every sample once, and the losses of a run that was left alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elastic_story import MICRO
from rich.console import Console

from diptych.cluster import ledger
from diptych.cluster.shapes import Shape
from diptych.cluster.train import prepare, run_on
from diptych.cluster.worker import open_plan
from diptych.config import to_yaml
from diptych.pretrain.checkpoint import steps
from diptych.pretrain.run import Run
from diptych.pretrain.rundir import RunDir

pytestmark = pytest.mark.cluster
SIZE = 48


def rows(place: RunDir) -> list[dict[str, Any]]:
    return place.rows("metrics.jsonl")


def test_nodes_come_and_go(
    bucket: str, tiny: Callable[..., Run], ray_here: None, tmp_path: Path
) -> None:
    """Real raylets, killed; 48 rows are 12, 24 or 16 a worker."""
    small_steps = (f"batch={SIZE}", "optim.lr=3e-5")  # rounding grows with them
    run = tiny("elastic", *small_steps, "steps=100000")
    recipe, place = tmp_path / "elastic.yaml", RunDir(f"{bucket}/elastic/moved")
    recipe.write_text(to_yaml(run))
    story = Path(__file__).with_name("elastic_story.py")
    done = subprocess.run(
        [sys.executable, str(story), str(recipe), place.url],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    worlds = [attempt.world for attempt in ledger.attempts(place)]
    assert [world for n, world in enumerate(worlds) if world != (worlds[:n] or [0])[-1]] == [
        *(4, 2, 3, 2),
    ]
    last = steps(place.url)[-1]
    lines = list(ledger.lines(place, open_plan(run), 0, last))
    seen = {(line.shard, line.key, line.epoch) for line in lines}
    assert len(seen) == len(lines) == last * SIZE
    slices = {(line.step, line.rank) for line in lines}
    assert ledger.verify(place, lines) == len(slices)
    run = tiny("elastic", *small_steps, f"steps={last}")
    shape = Shape(workers=2, micro_batch=MICRO)
    fixed, data = prepare(run, shape, f"{bucket}/elastic/fixed")
    run_on(run, shape, fixed, data, console=Console(quiet=True))
    assert [row["step"] for row in rows(place)] == [row["step"] for row in rows(fixed)]
    for ours, theirs in zip(rows(place), rows(fixed), strict=True):
        names = [name for name in theirs if name.endswith(".loss")]
        assert [ours[name] for name in names] == pytest.approx(
            [theirs[name] for name in names], rel=1e-5
        )
