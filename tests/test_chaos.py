"""The benchmarks of faults, with settings that take seconds: they say what they must."""

import json
import subprocess
import sys
from typing import Any


def bench(name: str, *arguments: str) -> list[dict[str, Any]]:
    """Runs a benchmark; returns its JSON lines."""
    command = [sys.executable, "-P", "-m", f"diptych.benchmarks.{name}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_rank_may_die_at_any_byte_of_a_save() -> None:
    [found] = bench("chaos_save", "--kills", "4", "--s3", "0", "--seed", "3")
    assert found["kills"] == found["resumed from a complete checkpoint"] == 4
    lost = found["steps lost, of those before the checkpoint that was being written"]
    assert set(lost) <= {"0", "2"}
    assert found["same bits as a run left alone"]
