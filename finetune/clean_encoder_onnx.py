"""Opens a folder as a stranger would: with onnxruntime and numpy, without torch and Diptych.

`python -I clean_encoder_onnx.py FOLDER` runs model.onnx on the inputs in probe.safetensors, for
each of the batch sizes there, holds its outputs against those stored, and writes proof.json.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

TOLERANCE = 1e-5
_PROVEN = ("model.onnx", "tokenizer.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check(out: Path) -> tuple[dict[str, float], list[int]]:
    """(the largest difference of each output from the stored one, the batch sizes).

    Raises:
        SystemExit: an output is missing, or differs.
    """
    pickles = [file.name for file in out.rglob("*") if file.suffix.lower() in _PICKLES]
    if pickles:
        sys.exit(f"{out} holds {pickles[0]}, which may be a pickle; refused.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(out / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    wanted_names = [each.name for each in session.get_inputs()]
    given_names = [each.name for each in session.get_outputs()]
    probe = load_file(out / "probe.safetensors")
    sizes = sorted({int(name.partition(".")[0]) for name in probe})
    apart: dict[str, float] = {}
    for size in sizes:
        given = {name: probe[f"{size}.in.{name}"] for name in wanted_names}
        found = dict(zip(given_names, session.run(given_names, given), strict=True))
        for key, wanted in probe.items():
            rows, _, name = key.partition(".out.")
            if not name or int(rows) != size:
                continue
            if name not in found:
                sys.exit(f"{out}: model.onnx does not give {name!r}.")
            difference = np.abs(np.asarray(found[name], np.float64) - wanted).max()
            apart[name] = max(apart.get(name, 0.0), float(difference))
    for name, value in apart.items():
        if not value <= TOLERANCE:  # or NaN
            sys.exit(
                f"{out}: {name} differs by {value:.3g} from the trained model "
                f"(allowed {TOLERANCE:g})."
            )
    return apart, sizes


def main(out: Path) -> None:
    """Checks the folder and keeps what was found."""
    differences, sizes = check(out)
    proof = {
        "loader": "onnxruntime",
        "onnxruntime": onnxruntime.__version__,
        "batch sizes": sizes,
        "max_difference": differences,
        "tolerance": TOLERANCE,
        "sha256": {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in _PROVEN},
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
