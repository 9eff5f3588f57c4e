"""Puts an adapter on its base as a stranger would: with peft, diffusers or LyCORIS alone.

`python -I clean_adapter.py FOLDER BASE` loads BASE/unet and BASE/text_encoder, puts the adapter in
FOLDER on them, runs each on the inputs in FOLDER/proof, holds what they say against what is stored
there, and writes proof.json. Run by path, since it must import nothing of Diptych.
"""

import hashlib
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def opened(base: Path, side: str) -> Any:
    """A side's module with the base's weights."""
    if side == "unet":
        return importlib.import_module("diffusers").UNet2DConditionModel.from_pretrained(
            str(base / side), local_files_only=True, use_safetensors=True
        )
    from transformers import CLIPTextModel

    return CLIPTextModel.from_pretrained(base / side, local_files_only=True, use_safetensors=True)


def with_peft(out: Path, modules: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """The modules under peft, one folder each."""
    from peft import PeftModel

    made: dict[str, Any] = {}
    for side, module in modules.items():
        folder = out / told["files"][side]
        made[side] = PeftModel.from_pretrained(module, str(folder), local_files_only=True)
        keys = load_file(folder / "adapter_model.safetensors").keys()
        require_whole(len(keys), made[side])
    return made


def with_diffusers(out: Path, modules: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """The modules of a pipeline that has loaded the file as `pipe.load_lora_weights` does."""
    diffusers: Any = importlib.import_module("diffusers")

    (name,) = told["files"].values()
    if told["loader"].endswith("load_lora_adapter"):
        modules["unet"].load_lora_adapter(str(out), weight_name=name, prefix="unet")
    else:
        pipe: Any = diffusers.StableDiffusionPipeline(
            vae=None,
            text_encoder=modules.get("text_encoder"),
            tokenizer=None,
            unet=modules["unet"] if "unet" in modules else _no_unet(),
            scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.load_lora_weights(str(out), weight_name=name)
    keys = [key for key in load_file(out / name) if not key.endswith(".alpha")]
    require_whole(len(keys), *modules.values())
    return modules


def _no_unet() -> Any:
    diffusers: Any = importlib.import_module("diffusers")

    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, norm_num_groups=4, cross_attention_dim=8,
    )  # fmt: skip


def with_lycoris(out: Path, modules: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """The modules as LyCORIS changes them."""
    wrapper: Any = importlib.import_module("lycoris.wrapper")
    (name,) = told["files"].values()
    heads = {"unet": "lora_unet", "text_encoder": "lora_te_text_model"}
    stored, there = load_file(out / name), 0
    networks: list[Any] = []
    for side, module in modules.items():
        wrapper.LycorisNetwork.LORA_PREFIX = heads[side]
        network, _ = wrapper.create_lycoris_from_weights(1.0, str(out / name), module)
        network.apply_to()
        own = {key: value for key, value in stored.items() if key.startswith(heads[side])}
        info = network.load_state_dict(own, strict=False)
        if info.unexpected_keys:
            sys.exit(f"{out / name}: LyCORIS knows nothing of {info.unexpected_keys[0]}.")
        networks.append(network)
        there += len(own)
    if there != len(stored):
        sys.exit(f"{out / name}: LyCORIS took {there} of {len(stored)} tensors.")
    return {**modules, "networks": networks}


LOADERS = {"peft": with_peft, "diffusers": with_diffusers, "lycoris": with_lycoris}


def aligned(module: Any) -> None:
    """Weights in memory of their own: where a file lies in memory decides the last bit."""
    for param in module.parameters():
        param.data = param.data.clone()


def require_whole(stored: int, *modules: Any) -> None:
    """Ends where the modules have not as many tensors of adapters as are stored."""
    marks = (
        ".lora_A.", ".lora_B.", ".lora_embedding_", "lora_magnitude_vector", ".lokr_", ".hada_",
    )  # fmt: skip
    names = [n for module in modules for n, _ in module.named_parameters()]
    there = sum(any(mark in name for mark in marks) for name in names)
    if there != stored:
        sys.exit(f"{stored} tensors are stored, and {there} were put on the base: keys were lost.")


@torch.no_grad()
def differences(modules: dict[str, Any], probe: dict[str, torch.Tensor], sides: Any) -> Any:
    """Largest difference of what each side says from what is stored."""
    found: dict[str, float] = {}
    for side in sides:
        args = [probe[key] for key in sorted(probe) if key.startswith(f"{side}.arg.")]
        head = f"{side}.word."
        words = {key.removeprefix(head): v for key, v in probe.items() if key.startswith(head)}
        said = modules[side].eval()(*args, **words)
        said = said if isinstance(said, torch.Tensor) else said[0]
        found[side] = float((said - probe[f"{side}.out"]).abs().max())
    return found


def check(out: Path, modules: dict[str, Any]) -> None:
    """Loads, runs, compares, writes proof.json.

    Raises:
        SystemExit: a pickle in the folder, or a side says something else.
    """
    told = json.loads((out / "proof" / "probe.json").read_text())
    stored = load_file(out / "proof" / "probe.safetensors")
    probe = {name: value.clone() for name, value in stored.items()}
    pickles = [file.name for file in out.rglob("*") if file.suffix.lower() in PICKLES]
    if pickles:
        sys.exit(f"{out} holds {pickles[0]}, which may be a pickle; refused.")
    for module in modules.values():
        aligned(module)
    made = LOADERS[told["loader"].partition(".")[0]](out, modules, told)
    for side in told["sides"]:
        aligned(made[side])
    found = differences(made, probe, told["sides"])
    for side, value in found.items():
        if not value <= told["tolerance"]:  # or NaN
            sys.exit(
                f"{out}: {side} differs by {value:.3g} from the trained model (allowed "
                f"{told['tolerance']:g}). Is the base another, or alpha lost?"
            )
    keep(out, told, found)


def keep(out: Path, told: dict[str, Any], found: dict[str, float]) -> None:
    """Writes proof.json."""
    files = [f for f in sorted(out.rglob("*")) if f.is_file() and f.name != "proof.json"]
    library = __import__(told["loader"].partition(".")[0])
    proof = {
        "loader": told["loader"],
        "version": getattr(library, "__version__", ""),
        "base": told["base"],
        "max_difference": found,
        "tolerance": told["tolerance"],
        "sha256": {str(f.relative_to(out)): _digest(f) for f in files},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "process": os.getpid(),
    }
    (out / "proof.json").write_text(json.dumps(proof, indent=1))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main(out: Path, base: Path) -> None:
    """Checks one folder on its base."""
    which = json.loads((out / "proof" / "probe.json").read_text())["sides"]
    check(out, {side: opened(base, side) for side in which})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
