"""Opens a pipeline as a stranger would: with diffusers alone, and without Diptych.

`python -I clean_pipeline.py FOLDER` draws the latents of proof/probe.json from the noise in
proof/probe.safetensors, holds them against those stored there, and writes proof.json. Run by path,
since it must import nothing of us.
"""

import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import diffusers as library
import torch
from safetensors.torch import load_file

diffusers: Any = library


def opened(out: Path, probe: dict[str, Any]) -> Any:
    """The pipeline, from a folder of diffusers or from one file in the original layout."""
    if file := probe.get("single_file"):
        return getattr(diffusers, probe["pipeline"]).from_single_file(
            str(out / file), config=str(out / "config"), local_files_only=True
        )
    without = dict.fromkeys(probe["without"])
    return diffusers.DiffusionPipeline.from_pretrained(
        str(out), local_files_only=True, use_safetensors=True, **without
    )


@torch.no_grad()
def drawn(pipeline: Any, probe: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
    """The latents of each prompt after the steps of the probe."""
    given: dict[str, Any] = {
        "num_inference_steps": probe["steps"],
        "guidance_scale": probe["guidance_scale"],
        "eta": probe["eta"],
        "generator": torch.Generator().manual_seed(probe["seed"]),
        "latents": noise,
        "height": probe["height"],
        "width": probe["width"],
    }
    if probe["pipeline"] != "LDMTextToImagePipeline":
        return pipeline(probe["prompts"], output_type="latent", **given).images
    kept: list[torch.Tensor] = []  # it always decodes: what it would decode is taken on the way
    decode, scale = pipeline.vqvae.decode, pipeline.vqvae.config.scaling_factor
    pipeline.vqvae.decode = lambda latents: (kept.append(latents * scale), decode(latents))[1]
    pipeline(probe["prompts"], output_type="pt", **given)
    return kept[0]


def main(out: Path) -> None:
    """Draws, compares, and keeps what was found.

    Raises:
        SystemExit: a pickle in the folder, or latents that differ.
    """
    pickles = [f.name for f in out.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickles:
        sys.exit(f"{out} holds {pickles[0]}, which may be a pickle; refused.")
    probe = json.loads((out / "proof" / "probe.json").read_text())
    tensors = load_file(out / "proof" / "probe.safetensors")
    pipeline = opened(out, probe)
    pipeline.set_progress_bar_config(disable=True)
    found = drawn(pipeline, probe, tensors["noise"])
    difference = float((found - tensors["latents"]).abs().max())
    if not difference <= probe["tolerance"]:  # or NaN
        sys.exit(
            f"{out}: latents differ by {difference:.3g} from the trained model's (allowed "
            f"{probe['tolerance']:g})."
        )
    files = [f for f in sorted(out.rglob("*")) if f.is_file() and f.name != "proof.json"]
    proof = {
        "loader": f"diffusers.{type(pipeline).__name__}",
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": probe["steps"],
        "max_difference": {"latents": difference},
        "tolerance": probe["tolerance"],
        "sha256": {str(f.relative_to(out)): _digest(f) for f in files},
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


def _digest(file: Path) -> str:
    with open(file, "rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
