"""Opens a folder as a stranger would: with open_clip alone, and without Diptych.

`python -I clean_clip.py FOLDER` runs the model on the inputs in probe.safetensors, holds features,
logits and tokens against those stored there, and writes proof.json.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file

TOLERANCE = 1e-5
_PROVEN = ("open_clip_config.json", "open_clip_model.safetensors")
_PROVEN += ("tokenizer.json", "tokenizer_config.json")


@torch.no_grad()
def check(out: Path) -> dict[str, float]:
    """The largest difference of each output from the stored one.

    Raises:
        SystemExit: an output differs.
    """
    model: Any = open_clip.create_model(f"local-dir:{out}").eval()
    probe = load_file(out / "probe.safetensors")
    image, text = probe["in.image"], probe["in.text"]
    logits, _ = model.get_logits(image, text)
    found = {
        "image_features": model.encode_image(image, normalize=True),
        "text_features": model.encode_text(text, normalize=True),
        "logits": logits,
    }
    apart = {name: float((found[name] - probe[f"out.{name}"]).abs().max()) for name in found}
    words = open_clip.get_tokenizer(f"local-dir:{out}")
    said = words(json.loads((out / "sentences.json").read_text()))
    apart["tokens"] = float((said - probe["tokens"]).abs().max())
    for name, value in apart.items():
        scale = max(1.0, float(probe["out.logits"].abs().max())) if name == "logits" else 1.0
        if not value <= TOLERANCE * scale:  # or NaN
            sys.exit(
                f"{out}: {name} differs by {value:.3g} from the trained model "
                f"(allowed {TOLERANCE * scale:g})."
            )
    return apart


def main(out: Path) -> None:
    """Checks the folder and keeps what was found."""
    differences = check(out)
    proof = {
        "loader": "open_clip",
        "open_clip": open_clip.__version__,
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
