"""Opens a ControlNet or T2I-Adapter as a stranger would: with diffusers alone, without Diptych.

`python -I clean_control.py FOLDER` gives the network the inputs in probe.safetensors, holds its
outputs against those stored there, and writes proof.json. Run by path, since it must import nothing
of us.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file

TOLERANCE = 1e-5
_PROVEN = ("config.json", "diffusion_pytorch_model.safetensors")


def opened(out: Path) -> Any:
    """The network, of the class that its config names.

    Raises:
        SystemExit: a weight is missing from the folder, or is not wanted.
    """
    name = json.loads((out / "config.json").read_text())["_class_name"]
    if name not in ("ControlNetModel", "T2IAdapter"):
        sys.exit(f"{out}: config.json names {name}, no ControlNetModel and no T2IAdapter.")
    kind: Any = getattr(diffusers, name)
    model, told = kind.from_pretrained(
        out, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[what]:
            sys.exit(f"{out}: {what.replace('_', ' ')} such as {sorted(told[what])[0]}.")
    for param in model.parameters():
        param.data = param.data.clone()
    return model.eval()


@torch.no_grad()
def said(model: Any, probe: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's outputs by name."""
    if type(model).__name__ == "T2IAdapter":
        return {f"level.{n}": one for n, one in enumerate(model(probe["in.hint"]))}
    places = ("text_embeds", "time_ids")
    down, middle = model(
        probe["in.x"],
        probe["in.time"],
        encoder_hidden_states=probe["in.context"],
        controlnet_cond=probe["in.hint"],
        class_labels=probe.get("in.classes"),
        added_cond_kwargs={name: probe[f"in.{name}"] for name in places if f"in.{name}" in probe},
        return_dict=False,
    )
    return {f"down.{n}": one for n, one in enumerate(down)} | {"middle": middle}


def main(out: Path) -> None:
    """Checks the folder and keeps what was found."""
    # Copies: a matrix product looks at where a row begins, and a mapped file begins anywhere.
    probe = {name: value.clone() for name, value in load_file(out / "probe.safetensors").items()}
    found = said(opened(out), probe)
    wanted = {name[4:]: value for name, value in probe.items() if name.startswith("out.")}
    if set(found) != set(wanted):
        sys.exit(f"{out} gives {sorted(found)}, the trained network {sorted(wanted)}.")
    differences = {name: float((found[name] - wanted[name]).abs().max()) for name in wanted}
    for name, value in differences.items():
        if not value <= TOLERANCE:  # or NaN
            sys.exit(
                f"{out}: {name} differs by {value:.3g} from the trained network "
                f"(allowed {TOLERANCE:g})."
            )
    proof = {
        "loader": f"diffusers {diffusers.__version__}",
        "rows": len(probe["in.hint"]),
        "max_difference": differences,
        "largest_output": max(float(value.abs().max()) for value in wanted.values()),
        "tolerance": TOLERANCE,
        "sha256": {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in _PROVEN},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
