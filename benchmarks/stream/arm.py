"""What all arms share: the job they are given, how they are timed, what they must show.

An arm is a program. It imports what it needs, calls `run` with a function that yields batches, and
`run` writes what was seen to a file. The clock starts after the imports; the time from the start
of the process is kept too.
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

BATCH = 80
WORKERS = 2
SHUFFLE = 1000
"""Samples in the shuffle buffer of peers that have one."""
CHECKED = 16
"""Every so-many-th sample has its bytes or pixels compared, in every arm."""

Batches = Iterable[tuple[Sequence[str], Any]]
"""(keys, a list of (jpg, txt) bytes or uint8 pixels of (B, 3, S, S) or (B, S, S, 3))."""


def shorter(size: int) -> int:
    """Pixels of the shorter side before the crop: ImageNet's Resize(256), CenterCrop(224)."""
    return 256 if size == 224 else size


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an arm is asked to do."""

    pixels: str
    """`raw`: members' bytes; `fetch`: bytes uncut; `shipped`: the peer's decoder; `same`: ours."""
    size: int
    """Side of the square to decode to, in pixels."""
    remote: str
    """URL of the set in the peer's form."""
    local: str
    """Folder of the set on this disk."""
    cache: str
    """An empty folder for the peer's cache."""
    out: str
    """File for what was seen."""
    route: str = ""
    """How a peer with several ways reaches the bucket."""
    limit_s: float = 600.0
    """An epoch is cut off after this time."""
    first: int = 0
    """Where in the epoch to start, in samples."""
    samples: int | None = None
    """Stop after as many samples."""

    @property
    def resize(self) -> int:
        """Pixels of the shorter side before the crop."""
        return shorter(self.size)

    @property
    def raw(self) -> bool:
        """Whether bytes are wanted, not pixels."""
        return self.pixels in ("raw", "fetch")

    @classmethod
    def given(cls) -> "Job":
        """The job on the command line."""
        return cls(**json.loads(sys.argv[1]))

    def argument(self) -> str:
        """The job as one argument of a command."""
        return json.dumps(asdict(self))


def run(job: Job, batches: Callable[[Job], Batches]) -> None:
    """Goes through an epoch and writes the times, the counts and the proofs to `job.out`."""
    cpu_s, began = time.process_time(), time.monotonic()
    first, first_cpu_s, resident_mib, cut = None, 0.0, 0.0, False
    keys: list[str] = []
    proofs: dict[str, float] = {}
    size = 0
    for found, payload in batches(job):
        if first is None:
            first, first_cpu_s, resident_mib = (
                time.monotonic(),
                time.process_time(),
                _resident_mib(),
            )
        size += look(job, found, payload, proofs)
        keys.extend(found)
        if time.monotonic() - began > job.limit_s or len(keys) >= (job.samples or 1 << 60):
            cut = True
            break
    ended = time.monotonic()
    seen = {
        "began": began,
        "first": first,
        "ended": ended,
        "cpu_before_s": cpu_s,
        "cpu_from_first_s": time.process_time() - first_cpu_s,
        "resident_mib": resident_mib,
        "samples": len(keys),
        "distinct": len(set(keys)),
        "ids": sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16],
        "bytes": size,
        "proofs": proofs,
        "cut": cut,
    }
    Path(job.out).write_text(json.dumps(seen))
    os._exit(0)  # half a second of tidying up is not the epoch's; the runner ends the workers


def look(job: Job, keys: Sequence[str], payload: Any, proofs: dict[str, float]) -> int:
    """Bytes of a batch; notes what its checked samples hold.

    Raises:
        ValueError: not the shape or the type that was asked for.
    """
    if job.raw:
        for key, (jpg, txt) in zip(keys, payload, strict=True):
            if int(key) % CHECKED == 0:
                proofs[key] = zlib.crc32(txt, zlib.crc32(jpg))
        return sum(len(jpg) + len(txt) for jpg, txt in payload)
    shape, kind = tuple(payload.shape), str(payload.dtype)
    wanted = [(len(keys), 3, job.size, job.size), (len(keys), job.size, job.size, 3)]
    if shape not in wanted or not kind.endswith("uint8"):
        raise ValueError(f"a batch of {kind} {shape}, not of uint8 {wanted[0]}")
    for place, key in enumerate(keys):
        if int(key) % CHECKED == 0:
            pixels = payload[place]
            proofs[key] = int(pixels.sum()) / (3 * job.size**2)
    return 0


def unchecked(number: int) -> str:
    """A key for what is not a sample, of which nothing is looked at."""
    return str(number * CHECKED + 1)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
