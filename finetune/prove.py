"""Opens an exported folder as another process of Diptych would, and repeats its probe.

`python -I -m diptych.finetune.prove FOLDER` computes the outputs that are stored there again and
keeps what it found in proof.json; see clean_process.py.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..data.batch import Batch
from ..errors import ExportError
from .export import folder

TOLERANCE = 1e-5
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check(out: Path) -> dict[str, Any]:
    """Loads the folder, repeats the probe, writes proof.json.

    Raises:
        ExportError: a pickle in the folder, or outputs that differ by more than the tolerance.
    """
    pickles = [file.name for file in out.rglob("*") if file.is_file() and is_pickle(file)]
    if pickles:
        raise ExportError(f"{out} holds {pickles[0]}, which may be a pickle; refused.")
    model = folder.load(out)
    probe = load_file(out / "probe.safetensors")
    rows = len(probe["tokens"])
    found = model.outputs(
        Batch(
            keys=tuple(str(row) for row in range(rows)),
            draws_B=torch.arange(rows),
            image_BCHW=probe["image"],
            tokens_BL=probe["tokens"],
            real_BL=probe["real"],
            fields=tuple({} for _ in range(rows)),
            arrays={name[6:]: array for name, array in probe.items() if name.startswith("array.")},
        )
    )
    wanted = {name[4:]: value for name, value in probe.items() if name.startswith("out.")}
    if set(wanted) != set(found):
        raise ExportError(f"{out} computes {sorted(found)}, the trained model {sorted(wanted)}.")
    differences = {name: float((found[name] - wanted[name]).abs().max()) for name in wanted}
    wrong = [name for name, value in differences.items() if not value <= TOLERANCE]  # or NaN
    if wrong:
        raise ExportError(
            f"{out}: {wrong[0]} differs by {differences[wrong[0]]:.3g} from the trained model "
            f"(allowed {TOLERANCE:g})."
        )
    proof = {
        "loader": f"{folder.__name__}.load",
        "rows": rows,
        "max_difference": differences,
        "tolerance": TOLERANCE,
        "sha256": folder.digests(out),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))
    return proof


def is_pickle(file: Path) -> bool:
    """Whether a file may be a pickle, by its name or its first bytes."""
    if file.suffix == ".safetensors":  # its first byte, of a length, can be any
        return False
    with open(file, "rb") as opened:
        start = opened.read(4)
    return file.suffix.lower() in _PICKLES or start[:1] == b"\x80" or start == b"PK\x03\x04"


if __name__ == "__main__":
    try:
        check(Path(sys.argv[1]))
    except ExportError as error:
        sys.exit(str(error))
