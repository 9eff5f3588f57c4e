"""An export is done when a clean process has loaded it and computed the same.

`prove` leaves inputs and the trained model's outputs in the folder, starts a new interpreter that
knows nothing but the folder, and keeps what that found in proof.json.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..data.batch import Batch
from ..errors import ExportError
from .export import folder

TOLERANCE = 1e-5
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def prove(out: Path, trained: folder.Loaded, batch: Batch) -> dict[str, Any]:
    """Proves a folder against the trained model on a batch, and returns what proof.json holds.

    Raises:
        ExportError: the clean process failed, or computed something else.
    """
    probe = {"image": batch.image_BCHW, "tokens": batch.tokens_BL, "real": batch.real_BL}
    probe |= {f"array.{name}": array for name, array in batch.arrays.items()}
    expected = {f"out.{name}": value for name, value in trained.outputs(batch).items()}
    tensors = {name: value.contiguous() for name, value in {**probe, **expected}.items()}
    save_file(tensors, out / "probe.safetensors")
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    command = [sys.executable, "-I", "-m", __name__, str(out.absolute())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise ExportError(f"{out} is not proven: {(done.stderr or done.stdout).strip()[-600:]}")
    return json.loads((out / "proof.json").read_text())


def check(out: Path) -> dict[str, Any]:
    """Loads the folder, repeats the probe, writes proof.json.

    Raises:
        ExportError: a pickle in the folder, or outputs that differ by more than the tolerance.
    """
    pickles = [file.name for file in out.rglob("*") if file.is_file() and _is_pickle(file)]
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


def _is_pickle(file: Path) -> bool:
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
