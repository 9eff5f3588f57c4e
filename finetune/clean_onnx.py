"""Opens model.onnx as a stranger would: with onnxruntime and numpy alone.

`python -I clean_onnx.py FOLDER` runs it on the inputs in probe.safetensors at each number of rows,
holds the outputs against those stored there, and writes proof.json.
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

TOLERANCE = 1e-4
"""Of the largest difference; of the mean one a tenth."""
_FILE = "model.onnx"


def main(out: Path) -> None:
    """Runs, compares, and keeps what was found.

    Raises:
        SystemExit: an output differs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    session = onnxruntime.InferenceSession(
        str(out / _FILE), options, providers=["CPUExecutionProvider"]
    )
    probe = load_file(out / "probe.safetensors")
    differences: dict[str, float] = {}
    for name, wanted in probe.items():
        if not name.startswith("out."):
            continue
        rows = name.removeprefix("out.")
        first = f"in.{rows}."
        given = {n.removeprefix(first): v for n, v in probe.items() if n.startswith(first)}
        apart = np.abs(np.asarray(session.run(None, given)[0]) - wanted)
        differences[f"{rows} rows"] = float(apart.max())
        if not (apart.max() <= TOLERANCE and apart.mean() <= TOLERANCE / 10):  # or NaN
            sys.exit(
                f"{out}: with {rows} rows outputs differ by {apart.max():.3g}, in the mean by "
                f"{apart.mean():.3g} (allowed {TOLERANCE:g} and {TOLERANCE / 10:g})."
            )
    proof = {
        "loader": "onnxruntime.InferenceSession",
        "max_difference": differences,
        "tolerance": TOLERANCE,
        "sha256": {_FILE: hashlib.sha256((out / _FILE).read_bytes()).hexdigest()},
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
