"""An export is done when a clean process has loaded it and computed the same.

A target leaves inputs (`in.NAME`) and the trained model's outputs (`out.NAME`) in the folder; a
new interpreter that knows nothing but the folder computes them again, and keeps what it found in
proof.json.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ExportError

_KEPT = ("PATH", "HOME", "LANG")
_SCRIPTS = Path(__file__).parent


def keep_probe(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the inputs and outputs that the proof repeats to probe.safetensors."""
    whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    save_file(whole, out / "probe.safetensors")


def repeat(out: Path, script: str, *more: str, timeout: float = 600) -> dict[str, Any]:
    """Runs a checking script on a folder in a clean process and returns its proof.json.

    Args:
        out: the exported folder.
        script: name of a file in this folder, run by its path so that it can import nothing of
            ours (`clean.py`); or a module of ours (`diptych.finetune.prove`). It is given the
            folder, writes proof.json there, and ends with a sentence and exit code 1 where the
            outputs differ.
        more: what else the script is given.
        timeout: seconds.

    Raises:
        ExportError: it failed, computed something else, or left no proof.
    """
    (out / "proof.json").unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name in _KEPT}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    where = [str(_SCRIPTS / script)] if script.endswith(".py") else ["-m", script]
    command = [sys.executable, "-I", *where, str(out.absolute()), *more]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as err:
        raise ExportError(f"{out} is not proven: {script} took over {timeout:g} s.") from err
    if done.returncode or not (out / "proof.json").exists():
        raise ExportError(f"{out} is not proven: {(done.stderr or done.stdout).strip()[-600:]}")
    return json.loads((out / "proof.json").read_text())
