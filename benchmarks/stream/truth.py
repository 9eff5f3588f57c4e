"""What an arm must have seen: every sample once, the same bytes, the same pictures."""

import json
from functools import cache
from hashlib import sha256
from typing import Any

from . import home
from .arm import Job

LEVELS = 4.0
"""Decoders and resizing filters differ; the mean of a picture differs by less than this."""


@cache
def _rows(name: str) -> dict[str, dict[str, Any]]:
    lines = home.truth(name).read_text().splitlines()
    return {row["key"]: row for row in map(json.loads, lines)}


def unequal(seen: dict[str, Any], name: str, job: Job) -> str:
    """How what was seen differs from the set, or nothing.

    An epoch that was cut off is only asked for distinct samples with the right content.
    """
    rows = _rows(name)
    if seen["distinct"] != seen["samples"]:
        return f"{seen['samples'] - seen['distinct']} samples came twice"
    if not seen["cut"]:
        if seen["ids"] != sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16]:
            return f"{seen['samples']} samples, not the {len(rows)} of the set"
        if job.raw and seen["bytes"] != sum(row["bytes"] for row in rows.values()):
            return f"{seen['bytes']:,} bytes are not those of the set"
        if len(seen["proofs"]) != sum("crc" in row for row in rows.values()):
            return f"only {len(seen['proofs'])} samples were compared"
    for key, proof in seen["proofs"].items():
        row = rows[key]
        if job.raw and proof != row["crc"]:
            return f"the bytes of sample {key} differ"
        if not job.raw and abs(proof - row["mean"]) > LEVELS:
            return f"the mean of picture {key} is {proof:.1f}, not {row['mean']:.1f}"
    return ""
