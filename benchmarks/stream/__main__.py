"""`python -m diptych.benchmarks.stream`: makes what is missing, measures in turns, reports."""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.errors import DiptychError

from ..process import Measured, measure
from ..rounds import Row, interleave
from . import growth, home, peers, report, stock, truth
from .arm import Job
from .parts import PARTS, Arm, Part, job
from .wire import between

RECORD = home.HOME / "results.jsonl"


def main() -> None:
    """Runs the parts that were asked for and writes the report."""
    parser = argparse.ArgumentParser(prog="make bench-data", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=60.0, help="an epoch is cut off here")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    parser.add_argument("--out", type=Path, default=home.ROOT / "docs" / "bench-data.md")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-data: ended"))  # and the server too
    unknown = set(asked.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    home.HOME.mkdir(parents=True, exist_ok=True)
    if asked.fresh:
        RECORD.unlink(missing_ok=True)
    peers.install()
    with home.server() as server:
        stock.describe_client(server)
        for name in asked.only.split(","):
            _part(name, server, rounds=asked.rounds, limit_s=asked.limit_s)
    report.write(RECORD, asked.out)


def _part(name: str, server: dict[str, str], *, rounds: int, limit_s: float) -> None:
    part = PARTS[name]
    for data in {arm.data or part.data for arm in part.arms}:
        make = growth.make if data in growth.SETS else stock.stock
        make(data, server)
    print(f"\n{part.title}", flush=True)
    one = _measured(part, server, limit_s)
    interleave(name, part.names, one, rounds=rounds, record=RECORD, told=_tell)


def _measured(part: Part, server: dict[str, str], limit_s: float) -> Callable[[str], Row]:
    """Measures an arm of a part by name."""

    def one(name: str) -> Row:
        arm = part.arm(name)
        data = arm.data or part.data
        absent = arm.peer and (peers.missing(arm.peer) or stock.unconverted(arm.peer, data))
        if absent:
            return {"error": absent}
        cache, out = home.HOME / "cache", home.HOME / "arm" / "seen.json"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        out.unlink(missing_ok=True)
        asked = job(part, arm, cache=str(cache), out=str(out), limit_s=limit_s)
        with between(server["AWS_ENDPOINT_URL"], arm.between) as (endpoint, received):
            found = _run(arm, asked, server | {"AWS_ENDPOINT_URL": endpoint}, out.parent)
        if not out.exists():
            return {"error": f"exit {found.code}: {found.said[-600:]}"}
        seen = json.loads(out.read_text())
        mb = received(seen["first"]) / 1e6
        return _row(part, arm, asked, found, seen) | {"mb": mb}

    return one


def _run(arm: Arm, asked: Job, server: dict[str, str], folder: Path) -> Measured:
    module = f"diptych.benchmarks.stream.arms.{arm.module}"
    command = [home.python(arm.peer or None), "-m", module, asked.argument()]
    environment = home.environment(server)
    patience = asked.limit_s + 60
    return measure(command, environment=environment, folder=folder, limit_s=patience)


def _row(part: Part, arm: Arm, asked: Job, found: Measured, seen: dict[str, Any]) -> Row:
    data = arm.data or part.data
    known = data not in growth.SETS and arm.module != "seen"
    compared = known and not arm.limit and asked.pixels != "fetch"
    wrong = truth.unequal(seen, data, asked) if compared else ""
    if wrong:
        return {"error": f"not the same work: {wrong}"}
    begins_empty = arm.limit or asked.pixels == "fetch"
    seconds = seen["ended"] - seen["first" if begins_empty else "began"]
    row: Row = {
        "seconds": seconds,
        "samples": seen["samples"],
        "rate": seen["samples"] / seconds,
        "cpu_s": found.cpu_s - seen["cpu_before_s"],
        "cpu_ms": 1000 * (found.cpu_s - seen["cpu_before_s"]) / max(1, seen["samples"]),
        "first_s": seen["first"] - found.started,
        "first_after_imports_s": seen["first"] - seen["began"],
        "peak_mib": found.peak_mib,
        "resident_mib": seen["resident_mib"],
        "cut": seen["cut"],
    }
    if seen["bytes"] and begins_empty:
        row["cpu_s_per_gb"] = seen["cpu_from_first_s"] / (seen["bytes"] / 1e9)
        row["mb_per_s"] = seen["bytes"] / 1e6 / seconds
    return row


def _tell(row: Row) -> None:
    said = row.get("error") or f"{row['rate']:8,.0f}/s  {row['cpu_ms']:6.2f} CPU-ms"
    if "error" not in row:
        said += f"  first {row['first_s']:5.2f} s  {row['peak_mib']:6,.0f} MiB"
    print(f"  {row['round']} {row['arm']:36} {said}  load {row['load']:.1f}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except DiptychError as err:
        raise SystemExit(f"bench-data: {err}") from err
