"""The benchmarks of faults and costs, with settings that take seconds: they say what they must."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def bench(name: str, *arguments: str) -> list[dict[str, Any]]:
    """Runs a benchmark; returns its JSON lines."""
    command = [sys.executable, "-P", "-m", f"diptych.benchmarks.{name}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_rank_may_die_at_any_byte_of_a_save() -> None:
    [found] = bench("chaos_save", "--kills", "8", "--s3", "0", "--seed", "3")
    assert found["kills"] == found["resumed from a complete checkpoint"] == 8
    assert set(found["steps lost, of those before the checkpoint that was being written"]) <= {
        *("0", "2")
    }
    assert found["same bits as a run left alone"]


@pytest.mark.parametrize("stage", [1])
def test_our_loop_and_bare_deepspeed_end_with_the_same_weights(tmp_path: Path, stage: int) -> None:
    small = ("--rounds", "1", "--steps", "3", "--widths", "16", "--ranks", "1")
    [found] = bench("engine", *small, "--stages", str(stage), "--home", str(tmp_path))
    assert found["same weights"]


def test_checkpoints_of_all_arms_are_made_and_ours_reads_back(tmp_path: Path) -> None:
    small = ("--width", "32", "--depth", "1", "--rounds", "1", "--after", "1", "--stages", "1")
    [found] = bench("checkpoint", *small, "--home", str(tmp_path))
    arms = found["zero 1"]
    assert {"ours", "torch.save", "deepspeed", "dcp", "dcp async", "persist raw"} <= set(arms)
    assert arms["bytes"] == 12 * arms["parameters"]
