"""Opens a folder as a stranger would: with transformers alone, and without Diptych.

`python -I clean.py FOLDER` runs the model on the inputs in probe.safetensors, holds its outputs
against those stored there, and writes proof.json. Run by path, since it must import nothing of us.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-5
_PROVEN = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@torch.no_grad()
def check(out: Path) -> dict[str, float]:
    """The largest difference of each output from the stored one.

    Raises:
        SystemExit: a weight is missing from the folder, or an output differs.
    """
    name = json.loads((out / "config.json").read_text())["architectures"][0]
    kind: Any = getattr(transformers, name)
    model, told = kind.from_pretrained(
        out, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if told["missing_keys"]:
        sys.exit(f"{out} lacks {sorted(told['missing_keys'])[0]}.")
    probe = load_file(out / "probe.safetensors")
    given = {name[3:]: value for name, value in probe.items() if name.startswith("in.")}
    said = model.eval()(**given)
    differences: dict[str, float] = {}
    for name, wanted in probe.items():
        if name.startswith("out."):
            found = getattr(said, name[4:])[:, : wanted.shape[1]]
            apart = (
                (found - wanted).abs().flatten(2).amax(2) if wanted.ndim == 3 else found - wanted
            )
            if wanted.ndim == 3:  # words: what stands in the padding means nothing
                apart = apart * given["attention_mask"]
            differences[name[4:]] = float(apart.abs().max())
    for name, value in differences.items():
        if not value <= TOLERANCE:  # or NaN
            sys.exit(
                f"{out}: {name} differs by {value:.3g} from the trained model "
                f"(allowed {TOLERANCE:g})."
            )
    return differences


def main(out: Path) -> None:
    """Checks the folder and keeps what was found."""
    differences = check(out)
    proof = {
        "loader": "transformers",
        "transformers": transformers.__version__,
        "max_difference": differences,
        "tolerance": TOLERANCE,
        "sha256": {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in _PROVEN},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
