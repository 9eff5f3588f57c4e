import sys
from pathlib import Path

import pytest

from diptych.benchmarks import ratios
from diptych.benchmarks.process import measure
from diptych.benchmarks.recovery.goodput import judged
from diptych.benchmarks.rounds import Row, interleave, rows
from diptych.benchmarks.stream.goals import Goal
from diptych.benchmarks.stream.parts import AGAIN, OURS


def run(record: Path, rounds: int, *, bad: str = "", die_at: int = -1) -> list[str]:
    turns: list[str] = []

    def one(arm: str) -> Row:
        if len(turns) == die_at:
            raise KeyboardInterrupt
        turns.append(arm)
        return {"error": "broken"} if arm == bad else {"rate": 1.0}

    interleave("p", ["a", "b", "c"], one, rounds=rounds, record=record, told=lambda row: None)
    return turns


def test_arms_take_turns_there_and_back(tmp_path: Path) -> None:
    assert "".join(run(tmp_path / "r", 3)) == "abccbaabc"


def test_a_stopped_run_repeats_its_unfinished_round_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r", 3, die_at=4)
    assert "".join(run(tmp_path / "r", 3)) == "cbaabc"
    assert run(tmp_path / "r", 3) == []
    assert len(list(rows(tmp_path / "r"))) == 9


def test_an_arm_that_fails_twice_is_left_out_and_stays_on_record(tmp_path: Path) -> None:
    assert "".join(run(tmp_path / "r", 4, bad="b")) == "abccbaacca"
    assert [row["error"] for row in rows(tmp_path / "r") if row["arm"] == "b"] == ["broken"] * 2
    assert run(tmp_path / "r", 4, bad="b") == []


def measured(ours: list[float], again: list[float], peer: list[float]) -> list[Row]:
    arms = {OURS: ours, AGAIN: again, "peer": peer}
    return [
        {"part": "raw", "arm": arm, "round": number, "rate": rate}
        for arm, rates in arms.items()
        for number, rate in enumerate(rates)
    ]


def test_ratios_are_paired_by_round() -> None:
    found = ratios.ratio(measured([2, 20, 200], [2, 20, 200], [1, 10, 100]), OURS, "peer", "rate")
    assert found == ratios.Spread(2, 2, 2)


def test_a_goal_is_reached_missed_or_without_a_verdict() -> None:
    goal = Goal("raw", "", OURS, ("peer",), "rate", least=2.0)
    assert goal.verdict(measured([4, 4], [4, 4], [2, 2]))[1] == "reached"
    assert goal.verdict(measured([3, 3], [3, 3], [2, 2])) == ("1.50 [1.50-1.50]", "missed")
    assert goal.verdict(measured([4, 4], [5, 5], [2, 2]))[1].startswith("no verdict")
    assert goal.verdict([]) == ("", "not measured")


def test_goodput_counts_repeated_steps_and_waits_as_lost() -> None:
    def step(attempt: int, value: int, t: float) -> dict[str, float | str]:
        return {"what": "step", "attempt": attempt, "value": value, "t": t}

    calm = [step(1, n, 2.0 * n) for n in range(1, 21)]
    assert judged(calm)["goodput"] == pytest.approx(1)
    killed = [step(2, n, 46 + 2.0 * (n - 11)) for n in range(11, 31)]  # back to step 10, after 6 s
    found = judged([*calm, *killed])
    assert (found["useful"], found["again"], found["step_s"]) == (29, 10, pytest.approx(2))
    assert found["goodput"] == pytest.approx(29 * 2 / (84 - 2))


def test_what_children_and_orphans_spend_is_counted(tmp_path: Path) -> None:
    spend = "import time\nwhile time.process_time() < 0.3: pass\n"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spend!r}])"
    found = measure(
        [sys.executable, "-c", child], environment={}, folder=tmp_path / "arm", limit_s=60
    )
    assert found.code == 0
    assert found.cpu_s > 0.3
    late = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {spend!r}])"
    late += "; import time; time.sleep(2)"
    assert (
        measure(
            [sys.executable, "-c", late], environment={}, folder=tmp_path / "arm", limit_s=60
        ).cpu_s
        > 0.3
    )


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    hang = "import time; time.sleep(1000)"
    found = measure(
        [sys.executable, "-c", hang], environment={}, folder=tmp_path / "arm", limit_s=1
    )
    assert found.code < 0
